package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	pb "google.golang.org/protobuf/proto"

	atoll "github.com/atollregistry/atoll/proto"
)

// A change of the authority as any leader would take it on, step by step: each step
// waits for the nodes that it needs, and follows from the record alone.
func TestNextAuthority(t *testing.T) {
	oldOne := &atoll.AuthorityCertificate{Der: []byte("old"), Key: []byte("old key"), CreatedUnixMs: 1}
	newOne := &atoll.AuthorityCertificate{Der: []byte("new"), Key: []byte("new key"), CreatedUnixMs: 2}
	former := &atoll.AuthorityCertificate{Der: []byte("old"), CreatedUnixMs: 1}
	byOld, byNew := sha256Of(oldOne.Der), sha256Of(newOne.Der)
	record := func(revision uint64, certificates ...*atoll.AuthorityCertificate) *atoll.ClusterAuthority {
		return &atoll.ClusterAuthority{Revision: revision, Certificates: certificates}
	}
	has := func(name string, revision uint64, issuer authorityHash) holding {
		return holding{name: name, known: true, revision: revision, issuer: issuer[:]}
	}
	silent, down := holding{name: "silent"}, holding{name: "down", down: true}
	for _, test := range []struct {
		name    string
		record  *atoll.ClusterAuthority
		nodes   []holding
		next    []*atoll.AuthorityCertificate
		waiting string
	}{
		{"files", record(0), []holding{silent}, nil, ""},
		{"settled", record(1, oldOne), []holding{silent, has("n1", 1, byOld)}, nil, ""},
		{"spreading", record(2, oldOne, newOne), []holding{has("n1", 2, byOld), has("n2", 1, byOld)}, nil, "node n2 has not heard of it"},
		{"spreading, one silent", record(2, oldOne, newOne), []holding{has("n1", 2, byOld), silent}, nil, "node silent has not answered"},
		{"spread", record(2, oldOne, newOne), []holding{has("n1", 2, byOld), has("n2", 3, byOld), down}, []*atoll.AuthorityCertificate{newOne, former}, ""},
		{"renewing", record(3, newOne, former), []holding{has("n1", 3, byNew), has("n2", 3, byOld)}, nil, "node n2 has no certificate by the new authority yet"},
		{"renewing, one has not heard", record(3, newOne, former), []holding{has("n1", 2, byOld)}, nil, "node n1 has not heard of it"},
		{"renewed", record(3, newOne, former), []holding{has("n1", 3, byNew), has("n2", 4, byNew), down}, []*atoll.AuthorityCertificate{newOne}, ""},
	} {
		next, waiting := nextAuthority(test.record, test.nodes)
		same := func(a, b *atoll.AuthorityCertificate) bool { return pb.Equal(a, b) }
		if !slices.EqualFunc(next, test.next, same) || strings.Join(waiting, ", ") != test.waiting {
			t.Errorf("%s: next is of %d certificates, waiting for %q", test.name, len(next), waiting)
		}
	}
}

// All nodes renew before two thirds of the lifetime are over, and not at the same moment.
func TestRenewalDue(t *testing.T) {
	m := startMember(t)
	leaf := m.keys.tls.certificate.Load().Leaf
	if got := lifetimeOf(leaf); got != issuedLifetime {
		t.Fatalf("lifetime is %s", got)
	}
	begin := leaf.NotAfter.Add(-issuedLifetime)
	latest, earliest := renewalDue(leaf, 0).Sub(begin), renewalDue(leaf, 1).Sub(begin)
	if latest.Round(time.Minute) != issuedLifetime*2/3 || earliest >= latest || earliest < issuedLifetime*6/10 {
		t.Errorf("renewal is due after %s to %s of %s", earliest, latest, issuedLifetime)
	}
}

// Any node goes on with what the state says, and a stale answer takes nobody's trust back.
func TestKeyringFollowsTheState(t *testing.T) {
	m := startMember(t)
	first := m.store.LocalAuthority().GetCertificates()[0]
	made, err := makeAuthorityRecord(DefaultClusterName)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.store.PutAuthority(t.Context(), 1, []*atoll.AuthorityCertificate{first, made}); err != nil {
		t.Fatal(err)
	}
	old := pb.Clone(m.store.LocalAuthority()).(*atoll.ClusterAuthority)
	old.Revision, old.Certificates = 1, old.Certificates[:1]
	trusts := func(want ...authorityHash) {
		t.Helper()
		saved, err := readCredentials(m.folder)
		if err != nil {
			t.Fatal(err)
		}
		again, err := saved.identity(m.folder)
		if err != nil {
			t.Fatal(err)
		}
		for where, identity := range map[string]*clusterTLS{"running": m.keys.tls, "on disk": again} {
			trusted := identity.trust.Load()
			for _, hash := range want {
				if !trusted.has(hash) || len(trusted.authorities) != len(want) {
					t.Errorf("%s: %d authorities are trusted, revision %d, %x among them: %v", where, len(trusted.authorities), trusted.revision, hash[:4], trusted.has(hash))
				}
			}
		}
	}
	trusts(sha256Of(first.Der))
	if err := m.keys.adopt(m.store.LocalAuthority()); err != nil {
		t.Fatal(err)
	}
	trusts(sha256Of(first.Der), sha256Of(made.Der))
	if err := m.keys.adopt(old); err != nil {
		t.Fatal(err)
	}
	trusts(sha256Of(first.Der), sha256Of(made.Der))

	// The new one signs.
	if err := m.store.PutAuthority(t.Context(), 2, []*atoll.AuthorityCertificate{made, {Der: first.Der}}); err != nil {
		t.Fatal(err)
	}
	self := &atoll.Node{Id: m.folder.identity.ID, Name: "n1"}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	issued, err := signOwn(self, m.store.LocalAuthority(), issuedLifetime, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.keys.renew(issued, key); err != nil {
		t.Fatal(err)
	}
	if issuedBy(m.keys.tls.certificate.Load()) != sha256Of(made.Der) {
		t.Error("the certificate is not by the new authority")
	}

	// By the old one alone, from a node that has not heard of the change, it is not taken
	// once the old one has gone.
	if err := m.store.PutAuthority(t.Context(), 3, []*atoll.AuthorityCertificate{made}); err != nil {
		t.Fatal(err)
	}
	if err := m.keys.adopt(m.store.LocalAuthority()); err != nil {
		t.Fatal(err)
	}
	stale, err := signOwn(self, old, issuedLifetime, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.keys.renew(stale, key); err == nil {
		t.Error("a certificate by an authority that is not trusted any more was taken")
	}
	trusts(sha256Of(made.Der))
	// Nor one that is for another node.
	other, err := signOwn(&atoll.Node{Id: m.folder.identity.ID, Name: "n2"}, m.store.LocalAuthority(), issuedLifetime, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.keys.renew(other, key); err == nil {
		t.Error("another node's certificate was taken")
	}
}
