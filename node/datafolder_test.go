package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDataFolderKeepsItsIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := openDataFolder(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.setCluster("c1"); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := openDataFolder(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.identity != first.identity || again.identity.ClusterID != "c1" {
		t.Errorf("identity was %+v, now %+v", first.identity, again.identity)
	}
}

func TestDataFolderRefusals(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir string)
		opener  string // name of the node that opens
		want    []string
	}{
		{"another node's", func(t *testing.T, dir string) { makeFolder(t, dir, "n2") }, "n1", []string{dirWord, `"n2"`, `"n1"`}},
		{"in use", func(t *testing.T, dir string) {
			folder, err := openDataFolder(dir, "n1")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { folder.Close() })
		}, "n1", []string{dirWord, "in use by another atoll process"}},
		{"data without identity", func(t *testing.T, dir string) {
			makeFolder(t, dir, "n1")
			remove(t, filepath.Join(dir, identityFile))
			write(t, filepath.Join(dir, raftDir, "raft.db"), "x")
		}, "n1", []string{dirWord, "has data but no node.json"}},
		{"damaged identity", func(t *testing.T, dir string) {
			makeFolder(t, dir, "n1")
			write(t, filepath.Join(dir, identityFile), `{"format":1,"id":"x","na`)
		}, "n1", []string{identityFile, "damaged"}},
		{"identity that is no UUID", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, identityFile), `{"format":1,"id":"7","name":"n1"}`)
		}, "n1", []string{identityFile, "not a UUID"}},
		{"newer format", func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, identityFile), `{"format":9}`)
		}, "n1", []string{dirWord, "format 9"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			test.prepare(t, dir)
			folder, err := openDataFolder(dir, test.opener)
			if err == nil {
				folder.Close()
				t.Fatal("the folder was opened")
			}
			for _, want := range test.want {
				if want == dirWord {
					want = dir
				}
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// dirWord stands for the test's folder in expected errors.
const dirWord = "DIR"

func makeFolder(t *testing.T, dir, name string) {
	t.Helper()
	folder, err := openDataFolder(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.Close(); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
