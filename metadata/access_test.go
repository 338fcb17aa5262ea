package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

func userOf(name string, groups ...string) *proto.Account {
	return &proto.Account{Name: name, Kind: proto.AccountKind_ACCOUNT_KIND_USER, Groups: groups}
}

func TestAccountsThroughTheStore(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	ctx := t.Context()
	for _, name := range []string{"carol", "alice", "bob"} {
		if err := s.PutAccount(ctx, userOf(name), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutAccount(ctx, userOf("bob"), nil); !errors.Is(err, ErrChanged) {
		t.Errorf("a second bob: %v", err)
	}
	if err := s.PutAccount(ctx, userOf("B O B"), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name that is none: %v", err)
	}
	var names []string
	everyPage(t, 2, func(after string) (page []string, more bool, err error) {
		accounts, more, err := s.Accounts(ctx, after, 2)
		for _, account := range accounts {
			page = append(page, account.GetName())
		}
		return page, more, err
	}, func(name string) { names = append(names, name) })
	if !slices.Equal(names, []string{"alice", "bob", "carol"}) {
		t.Errorf("accounts are %q", names)
	}
	if err := s.DeleteAccount(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"read":    func() error { _, err := s.Account(ctx, "bob"); return err }(),
		"local":   func() error { _, err := s.LocalAccount("bob"); return err }(),
		"change":  func() error { _, err := s.ChangeAccount(ctx, "bob", nil); return err }(),
		"delete":  s.DeleteAccount(ctx, "bob"),
		"no name": func() error { _, err := s.LocalAccount(""); return err }(),
	} {
		if !errors.Is(err, ErrAccountUnknown) {
			t.Errorf("%s of a deleted account: %v", what, err)
		}
	}
	checkInvariants(t, log.machine)
}

// Of changes at the same time none is lost.
func TestChangesOfAnAccountAtTheSameTime(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	if err := s.PutAccount(t.Context(), userOf("alice"), nil); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for {
				_, err := s.ChangeAccount(t.Context(), "alice", func(a *proto.Account) error {
					a.Groups = append(a.Groups, fmt.Sprint("group-", i))
					return nil
				})
				if errors.Is(err, ErrChanged) {
					continue // too many others
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	writers.Wait()
	alice, err := s.LocalAccount("alice")
	if err != nil || len(alice.GetGroups()) != 4 {
		t.Errorf("alice is in %q (%v)", alice.GetGroups(), err)
	}
	refused := errors.New("not like this")
	if _, err := s.ChangeAccount(t.Context(), "alice", func(*proto.Account) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("a change that is given up: %v", err)
	}
	checkInvariants(t, log.machine)
}

func immutablePolicy(tags string) *proto.Policy {
	return &proto.Policy{
		Rules:     []*proto.PolicyRule{{Repositories: []string{"**"}, Subjects: []string{"anonymous"}, Rights: []string{"pull"}}},
		Immutable: []*proto.ImmutableTags{{Repositories: []string{"**"}, Tags: []string{tags}}},
	}
}

// Whoever has the answer to PutPolicy finds it in force, here and after a restart, and
// on a node that got the state as a snapshot.
func TestPolicyIsPublished(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m, err := OpenMachine(MachineConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(m, &localLog{machine: m}, StoreConfig{})
	if p := s.LocalPolicy(); p.Revision() != 0 || p.Rights(policy.Subject{}, "app") != 0 {
		t.Errorf("policy of a new cluster has revision %d", p.Revision())
	}
	if err := s.PutPolicy(t.Context(), 1, immutablePolicy("v*")); !errors.Is(err, ErrChanged) {
		t.Errorf("policy over one that is not there: %v", err)
	}
	if err := s.PutPolicy(t.Context(), 0, &proto.Policy{Rules: []*proto.PolicyRule{{}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("policy of an empty rule: %v", err)
	}
	if err := s.PutPolicy(t.Context(), 0, immutablePolicy("v*")); err != nil {
		t.Fatal(err)
	}
	inForce := func(m *Machine, where string) {
		t.Helper()
		p := NewStore(m, nil, StoreConfig{}).LocalPolicy()
		if p.Revision() != 1 || p.Rights(policy.Subject{}, "app") != policy.Pull || !p.Immutable("app", "v1") {
			t.Errorf("%s: policy of revision %d is in force", where, p.Revision())
		}
	}
	inForce(m, "here")
	if err := s.renewTokenKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := openMachine(t, t.TempDir())
	before := other.access.policy.Load()
	if err := other.Restore(bytes.NewReader(snapshotOf(t, m))); err != nil {
		t.Fatal(err)
	}
	inForce(other, "after a snapshot")
	if before.Revision() != 0 {
		t.Error("a policy changed under those who use it")
	}
	if keys := NewStore(other, nil, StoreConfig{}).TokenKeys(); len(keys) != 1 {
		t.Errorf("after a snapshot there are %d token keys", len(keys))
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	inForce(openMachine(t, dir), "after a restart")
}

// A policy that changes between two commands of one transaction counts for the second.
func TestPolicyCountsFromTheNextCommand(t *testing.T) {
	t.Parallel()
	m := openMachine(t, t.TempDir())
	commands := []*proto.Command{
		{Body: &proto.Command_PutManifest{PutManifest: putOf("app", "one", "v1")}},
		{Body: &proto.Command_PutPolicy{PutPolicy: &proto.PutPolicy{Policy: immutablePolicy("v*")}}},
		{Body: &proto.Command_PutManifest{PutManifest: putOf("app", "two", "v1")}},
		{Body: &proto.Command_PutPolicy{PutPolicy: &proto.PutPolicy{Policy: immutablePolicy("w*")}}}, // refused: changed
		{Body: &proto.Command_PutManifest{PutManifest: putOf("app", "three", "v1")}},
		{Body: &proto.Command_PutPolicy{PutPolicy: &proto.PutPolicy{Policy: immutablePolicy("w*"), PreviousRevision: 1}}},
		{Body: &proto.Command_PutManifest{PutManifest: putOf("app", "four", "v1")}},
	}
	var entries []consensus.Entry
	for i, command := range commands {
		command.RequestId = requestID(uint64(i))
		entries = append(entries, entryOf(t, uint64(i+1), command))
	}
	results, err := m.Apply(entries)
	if err != nil {
		t.Fatal(err)
	}
	var refusals []string
	for _, encoded := range results {
		result, err := knownResult(encoded, false)
		if err != nil {
			t.Fatal(err)
		}
		refusals = append(refusals, strings.TrimPrefix(result.GetRefusal().String(), "REFUSAL_"))
	}
	expected := []string{"UNSPECIFIED", "UNSPECIFIED", "TAG_IMMUTABLE", "CHANGED", "TAG_IMMUTABLE", "UNSPECIFIED", "UNSPECIFIED"}
	if !slices.Equal(refusals, expected) {
		t.Errorf("answers are %q, want %q", refusals, expected)
	}
	if p := m.access.policy.Load(); p.Revision() != 2 || p.Immutable("app", "v1") {
		t.Errorf("policy %d is published", p.Revision())
	}
	checkInvariants(t, m)
}

// Of writers who race for an immutable tag one wins, and it stays with him.
func TestImmutableTagHasOneWinner(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	if err := s.PutPolicy(t.Context(), 0, immutablePolicy("v*")); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	var lock sync.Mutex
	var winners []string
	for i := range 8 {
		writers.Go(func() {
			content := fmt.Sprint("manifest ", i)
			switch err := s.PutManifest(t.Context(), putOf("app", content, "v1", fmt.Sprint("other-", i))); {
			case err == nil:
				lock.Lock()
				defer lock.Unlock()
				winners = append(winners, digestOf(content))
			case !errors.Is(err, ErrTagImmutable):
				t.Error(err)
			}
		})
	}
	writers.Wait()
	manifest, err := s.ManifestByTag(t.Context(), "app", "v1")
	if err != nil || len(winners) != 1 || winners[0] != manifest.GetDigest() {
		t.Errorf("winners are %q, the tag is at %s (%v)", winners, manifest.GetDigest(), err)
	}
	if tags, _, err := s.Tags(t.Context(), "app", "", 10); err != nil || len(tags) != 2 {
		t.Errorf("losers left %q (%v)", tags, err)
	}
	for what, err := range map[string]error{
		"tag":      s.DeleteTag(t.Context(), "app", "v1", nil),
		"manifest": s.DeleteManifest(t.Context(), "app", manifest.GetDigest(), nil),
	} {
		if !errors.Is(err, ErrTagImmutable) {
			t.Errorf("to delete the %s: %v", what, err)
		}
	}
	checkInvariants(t, log.machine)
}

// A manifest with more tags than one command deletes keeps all of them, if one stays,
// wherever that is in their order.
func TestManyTagsOfWhichOneStays(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	var tags []string
	for i := range tagsAtOnce + 5 {
		tags = append(tags, fmt.Sprintf("a-%04d", i))
	}
	tags = append(tags, "z-last")
	if err := s.PutManifest(t.Context(), putOf("app", "m1", tags...)); err != nil {
		t.Fatal(err)
	}
	if err := s.PutPolicy(t.Context(), 0, immutablePolicy("z-*")); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteManifest(t.Context(), "app", digestOf("m1"), nil); !errors.Is(err, ErrTagImmutable) {
		t.Errorf("deleted: %v", err)
	}
	left, _, err := s.Tags(t.Context(), "app", "", maxPage)
	if err != nil || len(left) != len(tags) {
		t.Errorf("%d of %d tags are left (%v)", len(left), len(tags), err)
	}
	checkInvariants(t, log.machine)
}

func TestUploadsOfOneOwner(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	var made []*proto.Upload
	for range 3 {
		upload, err := createUpload(t.Context(), s, "app", "user:alice", 3)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, upload)
	}
	if _, err := createUpload(t.Context(), s, "app", "user:alice", 3); !errors.Is(err, ErrTooManyUploads) {
		t.Errorf("a fourth upload of three: %v", err)
	}
	if _, err := createUpload(t.Context(), s, "app", "user:bob", 3); err != nil {
		t.Errorf("somebody else's: %v", err)
	}
	found, err := s.Upload(t.Context(), "app", made[0].GetId(), "")
	if err != nil || found.GetOwner() != "user:alice" || made[0].GetOwner() != "user:alice" {
		t.Errorf("upload is %v (%v)", found, err)
	}
	if err := s.CancelUpload(t.Context(), "app", made[1].GetId(), "user:alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := createUpload(t.Context(), s, "app", "user:alice", 3); err != nil {
		t.Errorf("an upload in the place of a cancelled one: %v", err)
	}
	checkInvariants(t, log.machine)
}

// The leader makes a key at once, another one when it is old, and forgets none that may
// still be asked for.
func TestTokenKeysFollowOneAnother(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000_000)
	s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }})
	if keys := s.TokenKeys(); len(keys) != 0 {
		t.Errorf("a new cluster has %d token keys", len(keys))
	}
	begin := now
	for ; now.Sub(begin) < 6*tokenKeyAge; now = now.Add(tokenKeyAge / 4) {
		if err := s.renewTokenKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		keys := s.TokenKeys()
		signer, oldest := keys[0], keys[len(keys)-1]
		if age := now.Sub(time.UnixMilli(signer.GetCreatedUnixMs())); age >= tokenKeyAge || len(signer.GetSeed()) != 32 {
			t.Errorf("the key that signs is %v old", age)
		}
		if since := time.UnixMilli(oldest.GetCreatedUnixMs()); oldest.GetId() > 1 && now.Sub(since) < TokenKeyLife {
			t.Errorf("a key is forgotten that may have signed %v ago", now.Sub(since))
		}
	}
	if keys := s.TokenKeys(); len(keys) != tokenKeysKept || keys[0].GetId() != 6 || keys[3].GetId() != 3 {
		t.Errorf("%d keys, the newest is %d", len(keys), keys[0].GetId())
	}
	if bytes.Equal(s.TokenKeys()[0].GetSeed(), s.TokenKeys()[1].GetSeed()) {
		t.Error("two keys are the same")
	}
	checkInvariants(t, log.machine)
}
