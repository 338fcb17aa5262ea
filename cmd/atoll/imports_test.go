package main

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/atollregistry/atoll"

// allowedImports are the arrows between the packages, each with its reason. What
// is not here is forbidden, above all blobstore -> metadata: shards do not need
// Raft, and what repair wants to know comes through an interface that node joins.
func allowedImports() map[string]map[string]string {
	return map[string]map[string]string{
		"cmd/atoll": {
			"node":       "the command line runs a node and talks to one",
			"cmd/bench":  "and measures registries, this or others",
			"cmd/sysmon": "what runs for long runs calmly",
		},
		"cmd/bench": {}, // a black box is measured from outside
		"cmd/performance": {
			"cmd/bench":  "runs of several servers in turns",
			"cmd/sysmon": "and takes little from them",
		},
		"cmd/sysmon": {},
		"cmd/simulate": {
			"blobstore":       "where shards go, and who repairs them, is its decision",
			"gateway":         "and what is hot, the gateway's",
			"blobstore/cache": "the model of the cache is compared with it",
			"proto":           "extents",
		},
		"node": {
			"gateway":         "node puts the layers together",
			"metadata":        "node puts the layers together",
			"metadata/policy": "what operators write is read and explained where they send it",
			"blobstore":       "node puts the layers together",
			"consensus":       "node puts the layers together",
			"proto":           "membership between nodes",
		},
		"node/alloctest": {}, // for the tests of all
		"node/nodetest": {
			"node":            "clusters for tests are made of nodes",
			"metadata":        "the closing checks compare states",
			"metadata/policy": "tests of login change the policy",
			"gateway":         "what login costs is measured against a gateway without",
			"blobstore":       "the closing checks read shards",
			"consensus":       "the closing checks compare logs",
			"proto":           "the closing checks read records",
		},
		"gateway": {
			"metadata":        "records, and errors to map",
			"metadata/policy": "who may do what",
			"blobstore":       "bytes, and errors to map",
			"proto":           "records",
		},
		"gateway/acmetest": {},
		"metadata": {
			"metadata/policy": "what the policy means, for tags that stay where they are",
			"consensus":       "errors to map, and entries to apply",
			"proto":           "records and commands",
		},
		"metadata/policy": {"proto": "the policy's record"},
		"blobstore": {
			"proto":           "extents, and the shard service",
			"blobstore/cache": "whole blobs are kept",
		},
		"blobstore/cache": {},
		"consensus":       {"proto": "its own service"},
		"proto":           {},

		// A black box is tested from outside: none of these knows a package of atoll.
		"jepsen": {
			"jepsen/history":  "what a run records and measures",
			"jepsen/registry": "the clients of a run",
			"jepsen/workload": "what clients do, and how it is judged",
			"jepsen/nemesis":  "what is done to the cluster",
			"jepsen/cluster":  "the nodes of a run",
			"jepsen/netlab":   "the network of a run",
			"jepsen/mutant":   "the programs of a run",
		},
		"jepsen/history":  {},
		"jepsen/registry": {"jepsen/history": "outcomes of requests"},
		"jepsen/workload": {
			"jepsen/history":  "operations are recorded, and judged",
			"jepsen/registry": "requests",
		},
		"jepsen/nemesis": {
			"jepsen/cluster": "nodes are broken",
			"jepsen/netlab":  "links are broken",
			"jepsen/history": "faults are recorded",
		},
		"jepsen/cluster": {},
		"jepsen/netlab":  {},
		"jepsen/mutant":  {},
	}
}

// listedPackage is what go list says of a package.
type listedPackage struct {
	ImportPath   string
	Dir          string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var packages []listedPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listedPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("read go list: %v", err)
		}
		packages = append(packages, p)
	}
}

// Imports go down only. Tests of a package may use what a test harness needs, but
// must not point up either.
func TestImportsGoDownOnly(t *testing.T) {
	allowed := allowedImports()
	packages := listPackages(t)
	if len(packages) < 2 {
		t.Fatalf("go list knows %d packages: the test looks at nothing", len(packages))
	}
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		arrows, known := allowed[name]
		if !known {
			t.Errorf("package %s is in no layer: put it into one, or into this table with its reason", name)
			continue
		}
		for _, imported := range p.Imports {
			if target, own := strings.CutPrefix(imported, module+"/"); own && arrows[target] == "" {
				t.Errorf("%s imports %s, which the layers do not allow", name, target)
			}
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			target, own := strings.CutPrefix(imported, module+"/")
			harness := target == "node/alloctest" ||
				target == "node/nodetest" && name == "node" ||
				target == "gateway/acmetest" && (name == "gateway" || name == "node/nodetest")
			if own && target != name && arrows[target] == "" && !harness {
				t.Errorf("tests of %s import %s, which the layers do not allow", name, target)
			}
		}
	}
}

// Every package says what it is for, once, in the file that is named after it.
func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range listPackages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		var documented []string
		files := token.NewFileSet()
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(file.Doc.Text()) != "" {
				documented = append(documented, name)
			}
		}
		if len(documented) != 1 {
			t.Errorf("package %s has its comment in %d files %v, want one", p.ImportPath, len(documented), documented)
		}
	}
}

// maxFileLines is the hard limit for one noun.
const maxFileLines = 500

func TestFilesAreShort(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, name := range p.GoFiles {
			if strings.HasSuffix(name, ".pb.go") {
				continue
			}
			content, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Count(string(content), "\n"); lines > maxFileLines {
				t.Errorf("%s/%s has %d lines, more than %d: is it still one noun?", p.ImportPath, name, lines, maxFileLines)
			}
		}
	}
}
