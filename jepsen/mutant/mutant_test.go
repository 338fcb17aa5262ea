package mutant

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// atollRoot is the root of the module that this package is in.
const atollRoot = "../.."

func TestMutantsAreWholeAndDiffer(t *testing.T) {
	workloads := []string{"register", "images", "uploads", "collect", "listing", "multitag", "quorumless"}
	nemeses := []string{
		"none", "kill", "kill-leader", "kill-all", "pause", "pause-leader", "halves", "isolate-leader", "one-way", "bridge", "flap",
		"latency", "loss", "reorder", "bandwidth", "slow-disk", "full-disk", "eio-read", "eio-sync", "power-one", "power-some", "power-all",
		"rot-shards", "rot-log", "rot-state", "rot-snapshot", "wipe", "clock", "membership", "drain", "replace", "rolling",
	}
	seen := make(map[string]bool)
	for _, m := range All() {
		if seen[m.Name] || m.Name == "" {
			t.Errorf("name %q is there twice, or empty", m.Name)
		}
		seen[m.Name] = true
		if m.Breaks == "" || m.Catches == "" || len(m.Patches) == 0 || len(m.Workloads) == 0 {
			t.Errorf("%s: something is missing", m.Name)
		}
		for _, workload := range m.Workloads {
			if !slices.Contains(workloads, workload) {
				t.Errorf("%s: there is no workload %q", m.Name, workload)
			}
		}
		if !slices.Contains(nemeses, m.Nemesis) {
			t.Errorf("%s: there is no nemesis %q", m.Name, m.Nemesis)
		}
		for _, p := range m.Patches {
			if p.Old == p.New || p.Old == "" {
				t.Errorf("%s: a patch of %s changes nothing, or makes a file", m.Name, p.File)
			}
		}
		if found, ok := Named(m.Name); !ok || found.Breaks != m.Breaks {
			t.Errorf("%s is not found by its name", m.Name)
		}
	}
	if _, ok := Named("none-of-these"); ok {
		t.Error("a name that is none was found")
	}
}

// TestPatchesFitTheTree also type-checks what they make of the packages that they change,
// which takes far less than to build them.
func TestPatchesFitTheTree(t *testing.T) {
	c := newChecker(t)
	common := append(Clock(), Tuning()...)
	t.Run("clock and tuning", func(t *testing.T) { c.check(t, common) })
	for _, m := range All() {
		t.Run(m.Name, func(t *testing.T) { c.check(t, append(common[:len(common):len(common)], m.Patches...)) })
	}
}

// checker type-checks packages of atoll against the compiled ones that they import.
type checker struct {
	root, goroot string
	files        *token.FileSet
	// sources are the source files of each of the module's packages, by its folder.
	sources  map[string][]string
	importer types.Importer
}

func newChecker(t *testing.T) *checker {
	t.Helper()
	root, err := filepath.Abs(atollRoot)
	if err != nil {
		t.Fatal(err)
	}
	goroot, err := run(t.Context(), root, "env", "GOROOT")
	if err != nil {
		t.Fatal(err)
	}
	listed, err := run(t.Context(), root, "list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Export,Standard", "./cmd/atoll")
	if err != nil {
		t.Fatalf("%v: %s", err, listed)
	}
	c := &checker{root: root, goroot: strings.TrimSpace(goroot), files: token.NewFileSet(), sources: make(map[string][]string)}
	exports := make(map[string]string)
	for decoder := json.NewDecoder(strings.NewReader(listed)); ; {
		var pkg struct {
			ImportPath, Dir, Export string
			GoFiles                 []string
			Standard                bool
		}
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		exports[pkg.ImportPath] = pkg.Export
		for _, name := range pkg.GoFiles {
			if !pkg.Standard {
				c.sources[pkg.Dir] = append(c.sources[pkg.Dir], filepath.Join(pkg.Dir, name))
			}
		}
	}
	c.importer = importer.ForCompiler(c.files, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("nothing is compiled of %s", path)
		}
		return os.Open(exports[path])
	})
	return c
}

// check applies patches, and looks at the files and packages that they have changed.
// Those of Go itself are left to a real build, and those that call what it gets too.
func (c *checker) check(t *testing.T, patches []Patch) {
	t.Helper()
	contents, err := patched(t.Context(), c.root, patches)
	if err != nil {
		t.Fatal(err)
	}
	changed := make(map[string]bool)
	for path, content := range contents {
		formatted, err := format.Source([]byte(content))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if string(formatted) != content {
			t.Errorf("%s is not formatted", path)
		}
		if !strings.HasPrefix(path, c.goroot) && !strings.HasSuffix(path, "cmd/atoll/clockjump.go") {
			changed[filepath.Dir(path)] = true
		}
	}
	for dir := range changed {
		if len(c.sources[dir]) == 0 {
			t.Errorf("%s is no package of the program", dir)
			continue
		}
		if err := c.checkPackage(dir, contents); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func (c *checker) checkPackage(dir string, contents map[string]string) error {
	var parsed []*ast.File
	for _, path := range c.sources[dir] {
		var source any // from the file
		if content, ok := contents[path]; ok {
			source = content
		}
		file, err := parser.ParseFile(c.files, path, source, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		parsed = append(parsed, file)
	}
	_, err := (&types.Config{Importer: c.importer}).Check(dir, c.files, parsed, nil)
	return err
}
