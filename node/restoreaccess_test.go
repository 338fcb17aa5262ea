package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/atollregistry/atoll/metadata"
)

// archiveOf is a copy of the office's state, as a backup has it.
func (o *office) archiveOf(t *testing.T) *metadata.Archive {
	t.Helper()
	state, _, _, err := o.log.machine.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	archive, err := metadata.OpenArchive(t.TempDir(), state)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := archive.Close(); err != nil {
			t.Error(err)
		}
	})
	return archive
}

// A cluster restored from a backup lets in whom the old one has let in, to do the same;
// what its operator has made meanwhile stays.
func TestAccessIsRestored(t *testing.T) {
	t.Parallel()
	old := openOffice(t)
	password := old.create(t, NewAccount{Name: "alice", Kind: KindUser, Groups: []string{"team-a"}}).Secret
	secret := old.create(t, NewAccount{Name: "ci", Kind: KindRobot, TTL: time.Hour}).Secret
	for i := range accountsSent {
		old.create(t, NewAccount{Name: fmt.Sprintf("robot-%02d", i), Kind: KindRobot})
	}
	old.setPolicy(t, NewPolicy{Text: teamPolicy})
	archive := old.archiveOf(t)

	next := openOffice(t)
	r := &restore{dataDir: next.dir, archive: archive}
	if err := r.access(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.summary.Accounts != accountsSent+2 || !r.summary.Policy {
		t.Errorf("restored is %+v", r.summary)
	}
	if !next.logsIn(t, "alice", password, 0) || !next.logsIn(t, "ci", secret, 0) || next.logsIn(t, "ci", secret, 2*time.Hour) {
		t.Error("who could log in can't, or for longer")
	}
	check, err := CheckPolicy(t.Context(), next.dir, "user:alice", "team-a/app", nil)
	if err != nil || check.Rights != "pull, push" {
		t.Errorf("alice may %+v (%v)", check, err)
	}
	again := &restore{dataDir: next.dir, archive: archive}
	if err := again.access(t.Context()); err != nil || again.summary.Accounts != 0 || again.summary.Policy {
		t.Errorf("once more: %+v (%v)", again.summary, err)
	}

	used := openOffice(t)
	own := used.create(t, NewAccount{Name: "alice", Kind: KindRobot}).Secret
	used.setPolicy(t, NewPolicy{Text: "rules: []"})
	r = &restore{dataDir: used.dir, archive: archive}
	if err := r.access(t.Context()); err != nil || r.summary.Accounts != accountsSent+1 || r.summary.Policy {
		t.Errorf("into a cluster with accounts: %+v (%v)", r.summary, err)
	}
	if !used.logsIn(t, "alice", own, 0) || used.logsIn(t, "alice", password, 0) {
		t.Error("an account of the cluster was overwritten")
	}
}

// A cluster that has changed nothing has nothing to restore.
func TestNoAccessIsRestored(t *testing.T) {
	t.Parallel()
	next := openOffice(t)
	r := &restore{dataDir: next.dir, archive: openOffice(t).archiveOf(t)}
	if err := r.access(t.Context()); err != nil || r.summary.Accounts != 0 || r.summary.Policy || next.store.LocalPolicy().Revision() != 0 {
		t.Errorf("restored is %+v (%v)", r.summary, err)
	}
}
