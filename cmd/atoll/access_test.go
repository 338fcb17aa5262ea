package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func TestLifetime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "0": 0, "0d": 0, "12h": 12 * time.Hour, "1h30m": 90 * time.Minute,
	} {
		var l lifetime
		if err := l.Set(text); err != nil || time.Duration(l) != want {
			t.Errorf("%s is %v (%v)", text, time.Duration(l), err)
		}
		var again lifetime
		if err := again.Set(l.String()); err != nil || again != l {
			t.Errorf("%s is shown as %s, which is %v (%v)", text, &l, again, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "99999d", "90", "-1h", "a day"} {
		var l lifetime
		if err := l.Set(text); err == nil {
			t.Errorf("%q is %v", text, time.Duration(l))
		}
	}
}

func TestReadPassword(t *testing.T) {
	for text, want := range map[string]node.Secret{
		"secret": "secret", "secret\n": "secret", "secret\r\n": "secret", " spaces \n": " spaces ", "two\nlines\n": "two\nlines",
	} {
		if got, err := readPassword(strings.NewReader(text), true); err != nil || got != want {
			t.Errorf("%q is %q (%v)", text, string(got), err)
		}
	}
	for _, text := range []string{"", "\n"} {
		if got, err := readPassword(strings.NewReader(text), true); err == nil {
			t.Errorf("%q is the password %q", text, string(got))
		}
	}
	if got, err := readPassword(iotest.ErrReader(errors.New("nobody wants it")), false); got != "" || err != nil {
		t.Errorf("unwanted: %q (%v)", string(got), err)
	}
	if got, err := readPassword(strings.NewReader(strings.Repeat("x", 1<<20)), true); err != nil || len(got) > maxPasswordInput {
		t.Errorf("a megabyte became %d bytes (%v)", len(got), err)
	}
}

func TestPrintAnswer(t *testing.T) {
	var out, words bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	cmd.SetErr(&words)
	answer := &node.AccountAnswer{Account: node.Account{Name: "ci", Kind: node.KindRobot}, Secret: "atoll_x", Warnings: []string{"mind the gap"}}
	if err := printAnswer(cmd, "is made", answer); err != nil {
		t.Fatal(err)
	}
	// A pipe gets the secret and nothing else.
	if out.String() != "atoll_x\n" || words.String() != "robot ci is made\nwarning: mind the gap\nthis is its secret, which is not shown again:\n" {
		t.Errorf("printed\n%s\nand\n%s", out.String(), words.String())
	}
	answer.Secret = ""
	if err := printAnswer(cmd, "is enabled", answer); err != nil || !strings.HasSuffix(out.String(), "robot ci is enabled\nwarning: mind the gap\n") {
		t.Errorf("printed\n%s (%v)", out.String(), err)
	}
}

func TestPrintAccounts(t *testing.T) {
	day := time.Date(2026, 1, 2, 15, 4, 5, 0, time.Local)
	var out bytes.Buffer
	err := printAccounts(&out, node.KindRobot, []node.Account{
		{Name: "alice", Groups: []string{"a", "b"}, Created: day, Description: "Alice \x1b[31m"},
		{Name: "ci", Disabled: true, Created: day, Secrets: []node.AccountSecret{
			{ID: "1111"}, {ID: "2222", Expires: &day}, {ID: "3333", Expires: &day, Expired: true},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `NAME   STATE     GROUPS  CREATED     SECRETS                                                   DESCRIPTION
alice  enabled   a,b     2026-01-02  -                                                         Alice [31m
ci     disabled  -       2026-01-02  1111, 2222 (until 2026-01-02 15:04:05), 3333 (expired)  
`
	if trimmed(out.String()) != trimmed(want) {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

// trimmed makes runs of spaces one.
func trimmed(table string) (out string) {
	for line := range strings.Lines(table) {
		out += strings.Join(strings.Fields(line), " ") + "\n"
	}
	return out
}

func TestPrintPolicyChange(t *testing.T) {
	diff := "- a may pull in b\n"
	for _, test := range []struct {
		change node.PolicyChange
		dryRun bool
		want   string
	}{
		{node.PolicyChange{Revision: 3, Changed: true, Diff: diff, Warnings: []string{"mind"}}, false, diff + "warning: mind\nthe policy is at revision 3\n"},
		{node.PolicyChange{Revision: 3, Changed: true}, false, "the policy is at revision 3, and means the same as before\n"},
		{node.PolicyChange{Revision: 2}, false, "this is the policy already, at revision 2\n"},
		{node.PolicyChange{Revision: 2, Diff: diff}, true, diff + "dry run: nothing was changed\n"},
		{node.PolicyChange{Revision: 2}, true, "dry run: it would mean the same as the present one\n"},
	} {
		var out bytes.Buffer
		if err := printPolicyChange(&out, &test.change, test.dryRun); err != nil || out.String() != test.want {
			t.Errorf("%+v printed\n%s (%v), want\n%s", test.change, out.String(), err, test.want)
		}
	}
}

func TestPrintPolicyCheck(t *testing.T) {
	for _, test := range []struct {
		check node.PolicyCheck
		want  string
	}{
		{node.PolicyCheck{
			Subject: "user:alice", Repository: "app", Account: "disabled", Groups: []string{"a"}, Rights: "pull",
			Grants: []node.PolicyGrant{{Rule: 2, Subject: "group:a", Repositories: "**", Rights: "pull"}},
		}, `user:alice, in the group a, may do in app: pull
but the account is disabled: 'atoll user enable alice'
RULE SUBJECT REPOSITORIES GIVES
2 group:a ** pull
`},
		{node.PolicyCheck{Subject: "robot:x", Repository: "app", Rights: "nothing"}, `robot:x, who has no account, may do in app: nothing
no rule gives anything: what no rule gives, nobody has
`},
		{node.PolicyCheck{Subject: "anonymous", Repository: "app", Rights: "nothing"}, `anonymous may do in app: nothing
no rule gives anything: what no rule gives, nobody has
`},
	} {
		var out bytes.Buffer
		if err := printPolicyCheck(&out, &test.check); err != nil || trimmed(out.String()) != trimmed(test.want) {
			t.Errorf("%+v printed\n%s (%v), want\n%s", test.check, out.String(), err, test.want)
		}
	}
}

// The commands have the ways that people try first: no argument is help, a wrong one is
// told with the nearest right one, and a password is never an argument.
func TestAccessCommandsHelp(t *testing.T) {
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"user"}, "passwd"},
		{[]string{"user", "ad"}, `did you mean "add"?`},
		{[]string{"robot", "rotat", "ci"}, `did you mean "rotate"?`},
		{[]string{"policy", "chek"}, `did you mean "check"?`},
		{[]string{"user", "add", "alice", "hunter22"}, "accepts 1 arg(s), received 2"},
		{[]string{"user", "add", "alice", "--data", "/nonexistent"}, "look for nodes"},
		{[]string{"policy", "set", "/nonexistent"}, "read policy"},
		{[]string{"robot", "create", "ci", "--ttl", "soon"}, "90d"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), test.args, &out, &out)
		if text := out.String() + fmt.Sprint(err); !strings.Contains(text, test.says) {
			t.Errorf("atoll %s says %s, want %q", strings.Join(test.args, " "), text, test.says)
		}
	}
}

// Every command that docs/access.md shows is one, with those flags and as many
// arguments.
func TestAccessDocumentationShowsCommands(t *testing.T) {
	page, err := os.ReadFile("../../docs/access.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?:^\\$ |`)atoll ([^`\n|>]+)").FindAllStringSubmatch(strings.ReplaceAll(string(page), "\n$ ", "\n`"), -1)
	checked := 0
	for _, match := range shown {
		line := strings.NewReplacer("[", "", "]", "", "...", "").Replace(match[1])
		root := newRootCommand()
		cmd, rest, err := root.Find(strings.Fields(line))
		if err != nil || cmd == root {
			t.Errorf("atoll %s: no such command (%v)", line, err)
			continue
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("atoll %s: %v", line, err)
			continue
		}
		args := cmd.Flags().Args()
		if len(args) == 0 && strings.Contains(cmd.Use, " ") {
			continue // the command is only named
		}
		if err := cmd.ValidateArgs(args); err != nil {
			t.Errorf("atoll %s: %v", line, err)
		}
		checked++
	}
	if checked < 15 {
		t.Errorf("only %d of %d commands were checked", checked, len(shown))
	}
}
