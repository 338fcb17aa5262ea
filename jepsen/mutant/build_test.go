package mutant

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// buildLimit bounds one build, and what is done with it, on a busy machine: the first
// one with Clock compiles the whole standard library.
const buildLimit = 10 * time.Minute

const tinyMain = `package main

import "fmt"

func main() { fmt.Println(greeting, number) }
`

// tiny makes a module that is built like atoll, and much faster.
func tiny(t *testing.T, main string) (root string) {
	t.Helper()
	root = t.TempDir()
	write(t, filepath.Join(root, "go.mod"), "module tiny\n\ngo 1.26\n")
	write(t, filepath.Join(root, "cmd/atoll/main.go"), main)
	return root
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestBuildPutsPatchesOverTheTree(t *testing.T) {
	root, temp := tiny(t, tinyMain), t.TempDir()
	t.Setenv("TMPDIR", temp)
	program := filepath.Join(t.TempDir(), "program")
	err := Build(t.Context(), root, program, []Patch{
		{File: "cmd/atoll/main.go", Old: "greeting,", New: `"a", greeting,`},
		{File: "cmd/atoll/main.go", Old: `"a"`, New: `"b"`}, // what the first has left
		{File: "cmd/atoll/more.go", New: "package main\n\nconst greeting, number = \"c\", 7\n"},
		{File: "cmd/atoll/more.go", Old: "7", New: "8"},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program).Output()
	if err != nil || string(out) != "b c 8\n" {
		t.Errorf("the program prints %q, %v", out, err)
	}
	main, err := os.ReadFile(filepath.Join(root, "cmd/atoll/main.go"))
	if err != nil || string(main) != tinyMain {
		t.Errorf("the tree has changed: %q, %v", main, err)
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
}

func TestBuildSaysWhichPatchDoesNotFit(t *testing.T) {
	const main = "cmd/atoll/main.go"
	root := tiny(t, tinyMain)
	fits := Patch{File: main, Old: "greeting", New: `"a"`}
	tests := []struct {
		name  string
		patch Patch
		want  []string
	}{
		{"nothing to replace", Patch{main, "farewell", "x"}, []string{"patch 2, of " + main, `"farewell" occurs 0 times`}},
		{"several places", Patch{main, "fmt", "x"}, []string{"patch 2, of " + main, `"fmt" occurs 2 times`}},
		{"replaced before", Patch{main, "greeting", "x"}, []string{"patch 2, of " + main, "occurs 0 times"}},
		{"no such file", Patch{"cmd/atoll/none.go", "a", "b"}, []string{"patch 2, of cmd/atoll/none.go", "no such file"}},
		{"file is there", Patch{main, "", "package main"}, []string{"patch 2, of " + main, "is there"}},
		{"file of Go is there", Patch{"GOROOT/src/time/time.go", "", "package time"}, []string{"patch 2, of GOROOT/src/time/time.go", "is there"}},
		{"outside", Patch{"../main.go", "a", "b"}, []string{"patch 2, of ../main.go", "out of the module"}},
		{"outside of Go", Patch{"GOROOT/../a.go", "", "b"}, []string{"patch 2, of GOROOT/../a.go", "out of the module"}},
		{"does not compile", Patch{main, "number", "nothing"}, []string{"with 2 patches", "undefined: nothing"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "program")
			err := Build(t.Context(), root, program, []Patch{fits, test.patch})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not have %q", err, want)
				}
			}
			if _, err := os.Stat(program); err == nil {
				t.Error("there is a program")
			}
		})
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Build(ctx, tiny(t, tinyMain), filepath.Join(t.TempDir(), "program"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
