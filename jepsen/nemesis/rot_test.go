package nemesis

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

func testField() *Field {
	return &Field{Rand: rand.New(rand.NewPCG(1, 1)), Log: func(string, ...any) {}}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func bitsBetween(a, b string) (bits int) {
	for i := range a {
		for x := a[i] ^ b[i]; x != 0; x &= x - 1 {
			bits++
		}
	}
	return bits
}

func TestFlipAndCut(t *testing.T) {
	f := testField()
	path := filepath.Join(t.TempDir(), "a")
	const before = "some bytes, of which one bit is to be another"
	writeFile(t, path, before)
	if err := f.flip(path, 1); err != nil {
		t.Fatal(err)
	}
	if damaged := readFile(t, path); len(damaged) != len(before) || bitsBetween(before, damaged) != 1 {
		t.Errorf("%d bits of %d bytes are others", bitsBetween(before, damaged), len(damaged))
	}
	if err := f.cut(path); err != nil {
		t.Fatal(err)
	}
	if len(readFile(t, path)) >= len(before) {
		t.Error("nothing was cut off")
	}
}

func TestSwap(t *testing.T) {
	dir := t.TempDir()
	a, b, aside := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "aside")
	writeFile(t, a, "one")
	writeFile(t, b, "two")
	if err := swap(a, b, aside); err != nil {
		t.Fatal(err)
	}
	if readFile(t, a) != "two" || readFile(t, b) != "one" {
		t.Error("the files did not change places")
	}
	if err := swap(a, filepath.Join(dir, "none"), aside); !errors.Is(err, os.ErrNotExist) || readFile(t, a) != "two" {
		t.Errorf("swapped with nothing: %v", err)
	}
	writeFile(t, filepath.Join(dir, "folder", "file"), "") // no file takes a folder's place
	if err := swap(filepath.Join(dir, "folder"), a, aside); err != nil {
		t.Fatal(err)
	}
	if err := swap(b, a, filepath.Join(dir, "none", "aside")); err == nil || readFile(t, b) != "one" {
		t.Errorf("put aside nowhere: %v", err)
	}
	if err := swap(b, b, aside); !errors.Is(err, os.ErrNotExist) || readFile(t, b) != "one" {
		t.Errorf("swapped with itself: %v", err)
	}
	if _, err := os.Stat(aside); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was left aside")
	}
}

// Files change places only within a folder: each is a file system of its own.
func TestAnother(t *testing.T) {
	folders := []string{"/n1-0/data", "/n1-1/data"}
	files := []string{"/n1-0/data/shards/00/a", "/n1-1/data/shards/00/b", "/n1-0/data/shards/01/c", "/n1-1/data/shards/02/d", "/n1-1/data/shards/02/e"}
	for i, want := range []int{2, 3, 0, 4, 1} {
		if got := another(files, i, folderOf(folders, files[i])); got != files[want] {
			t.Errorf("%s changes places with %s", files[i], got)
		}
	}
	if got := another(files[:2], 0, folders[0]); got != files[0] {
		t.Errorf("the only file changes places with %s", got)
	}
}

func TestRotShards(t *testing.T) {
	f := testField()
	dir := t.TempDir()
	n := &cluster.Node{Folders: []string{filepath.Join(dir, "0", "data"), filepath.Join(dir, "1", "data")}}
	const count = 50
	before := make(map[string]string)
	for i := range count {
		path := filepath.Join(n.Folders[i%2], "shards", "00", string(rune('A'+i)))
		before[path] = "the content of " + path
		writeFile(t, path, before[path])
	}
	files, err := n.ShardFiles()
	if err != nil || len(files) != count {
		t.Fatalf("%d files, %v", len(files), err)
	}
	done, err := f.rotShards(n, append(files, filepath.Join(dir, "gone")))
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for path, content := range before {
		if now, err := os.ReadFile(path); err != nil || string(now) != content {
			damaged++
		}
	}
	// One may have been struck twice.
	if damaged == 0 || damaged > done.count() || done.flipped*done.cut*done.removed*done.swapped == 0 {
		t.Errorf("%d damaged: %v", damaged, done)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", "*.aside")); err != nil || len(left) != 0 {
		t.Errorf("left aside: %v, %v", left, err)
	}
}
