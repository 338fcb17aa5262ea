package blobstore

import (
	"path/filepath"
	"slices"
	"testing"
)

// Every step of a shard's life is told, in its order, before and after.
func TestStepsOfAShard(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	var steps []string
	cfg.WatchSteps = func(s Step) {
		path := s.Path
		if s.To != "" {
			path = s.To
		}
		place := filepath.Base(path)
		if filepath.Base(filepath.Dir(path)) == unfinishedFolder { // its name is random
			place = unfinishedFolder
		}
		step := string(s.Op) + " " + place
		if s.Done {
			step += " done"
		}
		steps = append(steps, step)
	}
	d := openTestDisk(t, cfg)
	steps = nil
	shard := newShardContent(t, 1, 16, 40)
	if _, err := shard.write(d); err != nil {
		t.Fatal(err)
	}
	name, folder := shard.id().String(), folderName(shard.id().extent[0])
	want := []string{"create tmp", "create tmp done", "write tmp", "write tmp done", "write tmp", "write tmp done",
		"sync tmp", "sync tmp done", "rename " + name, "rename " + name + " done", "sync folder " + folder, "sync folder " + folder + " done"}
	if !slices.Equal(steps, want) {
		t.Errorf("writing a shard:\n%v\nwant\n%v", steps, want)
	}
	steps = nil
	if err := d.remove(shard.id()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"remove " + name, "remove " + name + " done"}; !slices.Equal(steps, want) {
		t.Errorf("removing a shard: %v, want %v", steps, want)
	}
}
