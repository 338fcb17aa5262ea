package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

func TestPrintAuthority(t *testing.T) {
	expires := time.Date(2027, 2, 19, 11, 24, 36, 0, time.Local)
	status := &node.AuthorityStatus{
		State: "renewing", Revision: 3, Waiting: []string{"node n2 has no certificate by the new authority yet"},
		Authorities: []node.AuthorityInfo{
			{Fingerprint: strings.Repeat("ab", 32), Signs: true, Created: expires, Expires: expires},
			{Fingerprint: strings.Repeat("cd", 32), Created: expires, Expires: expires},
		},
		Nodes: []node.HoldingInfo{
			{Node: "n1", Issuer: strings.Repeat("ab", 32), Expires: &expires},
			{Node: "n2", Issuer: strings.Repeat("cd", 32), Expires: &expires},
			{Node: "n3", Down: true},
		},
	}
	var out bytes.Buffer
	if err := printAuthority(&out, status); err != nil {
		t.Fatal(err)
	}
	want := `state renewing, revision 3
waiting: node n2 has no certificate by the new authority yet

AUTHORITY         SIGNS  CREATED              EXPIRES
abababababababab  yes    2027-02-19 11:24:36  2027-02-19 11:24:36
cdcdcdcdcdcdcdcd  no     2027-02-19 11:24:36  2027-02-19 11:24:36

NODE  CERTIFICATE BY    EXPIRES
n1    abababababababab  2027-02-19 11:24:36
n2    cdcdcdcdcdcdcdcd  2027-02-19 11:24:36
n3                      unknown, the node is down and not waited for
`
	if out.String() != want {
		t.Errorf("printed:\n%swant:\n%s", &out, want)
	}
}

// What an operator writes about a token can't play tricks on a terminal.
func TestOneLine(t *testing.T) {
	if got := oneLine("a\nb\x1b[31m\tc"); got != "a b [31m c" {
		t.Errorf("%q", got)
	}
}

func TestTokenCommandFaults(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"token", "create", "--data", t.TempDir()}, "no node has run in"},
		{[]string{"token", "create", "--ttl", "never"}, "never"},
		{[]string{"token", "revoke"}, "accepts 1 arg"},
		{[]string{"ca", "rotate", "--data", "/nowhere"}, "/nowhere"},
		{[]string{"serve", "--name=n1", "--data=" + t.TempDir(), "--registry-plain-http", "--join=n2:5100", "--token=atoll1.secret-part"}, "the join token is not whole"},
		{[]string{"serve", "--name=n1", "--data=" + t.TempDir(), "--registry-plain-http", "--token-file=/nowhere"}, "no address given of a node"},
		{[]string{"serve", "--name=n1", "--data=" + t.TempDir(), "--registry-plain-http", "--join=n2:5100", "--token-file=/nowhere"}, "token-file: open /nowhere"},
		{[]string{"serve", "--name=n1", "--data=" + t.TempDir(), "--registry-plain-http", "--cluster-ca=x"}, "cluster.key: no file given"},
	} {
		_, err := runCommand(t, test.args...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: error is %v, want it to say %q", test.args, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret-part") {
			t.Errorf("%v: the error quotes the token: %v", test.args, err)
		}
	}
}
