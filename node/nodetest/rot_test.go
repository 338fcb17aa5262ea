package nodetest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Where the key of a record has rotted, the record is not found, and no checksum of its own tells. A node
// must notice before it tells anybody that what was pushed is not there.
func TestRottenKeyIsNoticedAtTheStart(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	push(t, c, "app", "v1", 1, c.Members[0])
	victim := c.Members[2]
	c.checkState() // it has applied the push
	victim.Stop()
	file := filepath.Join(victim.Config.Home(), "state", "state.db")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, rotten := []byte("app\x00v1"), []byte("app\x00v3")
	if !bytes.Contains(content, key) {
		t.Fatal("the state has no such key")
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(content, key, rotten), 0o600); err != nil {
		t.Fatal(err)
	}
	victim.wantStartFault("start the node on an empty data folder")
	victim.Wipe()
	victim.Start()
	victim.WaitReady()
	c.Check()
}
