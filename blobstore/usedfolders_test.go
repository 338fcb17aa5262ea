package blobstore

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// usedFolders are the shard folders of nodes whose tests are over, without files, for the next ones. To make and remove 257 folders
// for each node took half of the processor time of this package's tests: ext4 passes over all inodes that were removed lately.
var usedFolders struct {
	mu    sync.Mutex
	root  string // "" before the first
	free  []string
	count int
}

// newShardsDir returns where a node is to keep its shards.
func newShardsDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shards")
	usedFolders.mu.Lock()
	defer usedFolders.mu.Unlock()
	if last := len(usedFolders.free) - 1; last >= 0 {
		if err := os.Rename(usedFolders.free[last], dir); err != nil {
			t.Fatal(err)
		}
		usedFolders.free = usedFolders.free[:last]
	}
	t.Cleanup(func() { keepFolders(dir) })
	return dir
}

// keepFolders keeps the folders, if the test has left them as they should be.
func keepFolders(dir string) {
	if !emptyFolders(dir) {
		return
	}
	usedFolders.mu.Lock()
	defer usedFolders.mu.Unlock()
	if usedFolders.root == "" {
		root, err := os.MkdirTemp("", "atoll-folders")
		if err != nil {
			return
		}
		usedFolders.root = root
	}
	kept := filepath.Join(usedFolders.root, fmt.Sprint(usedFolders.count))
	usedFolders.count++
	if os.Rename(dir, kept) == nil {
		usedFolders.free = append(usedFolders.free, kept)
	}
}

// emptyFolders removes all files, and says whether only the folders that every node makes are left.
func emptyFolders(dir string) bool {
	found, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	folders := 0
	for _, entry := range found {
		path := filepath.Join(dir, entry.Name())
		if !entry.IsDir() {
			if os.Remove(path) != nil {
				return false
			}
			continue
		}
		folders++
		files, err := os.ReadDir(path)
		for _, file := range files {
			if err == nil {
				err = os.Remove(filepath.Join(path, file.Name()))
			}
		}
		if err != nil {
			return false
		}
	}
	return folders == shardFolders+1
}

// dropFolders ends the tests.
func dropFolders(code int) {
	if usedFolders.root != "" {
		_ = os.RemoveAll(usedFolders.root) // the system cleans up there as well
	}
	os.Exit(code)
}
