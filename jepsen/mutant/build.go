package mutant

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Patch changes one place of one file, for one build.
type Patch struct {
	// File is relative to the module's root, or to that of the Go installation when it
	// begins with "GOROOT/". Slashes part its names.
	File string
	// Old must occur exactly once in the file, as the patches before this one have left
	// it. If it is empty, there must be no such file yet: New is all of it.
	Old string
	// New takes the place of Old.
	New string
}

// inGoroot begins the names of files of the Go installation.
const inGoroot = "GOROOT/"

// killWait bounds how long the compilers may outlive a build that was cancelled.
const killWait = 10 * time.Second

// Build compiles cmd/atoll of the module in root, with patches, to the file out. What is
// in root and in the Go installation stays as it is. It fails if a patch does not fit,
// and says which; if the result does not compile, with what the compiler says; and when
// ctx ends.
func Build(ctx context.Context, root, out string, patches []Patch) (err error) {
	return build(ctx, root, out, "./cmd/atoll", patches)
}

// build is Build for any package of the module.
func build(ctx context.Context, root, out, pkg string, patches []Patch) (err error) {
	out, err = filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("build %s of %s: %w", pkg, root, err)
	}
	contents, err := patched(ctx, root, patches)
	if err != nil {
		return fmt.Errorf("build %s of %s: %w", pkg, root, err)
	}
	dir, err := os.MkdirTemp("", "atoll-overlay-")
	if err != nil {
		return fmt.Errorf("build %s of %s: %w", pkg, root, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	overlay, err := writeOverlay(dir, contents)
	if err != nil {
		return fmt.Errorf("build %s of %s: %w", pkg, root, err)
	}
	if said, err := run(ctx, root, "build", "-trimpath", "-overlay", overlay, "-o", out, pkg); err != nil {
		return fmt.Errorf("build %s of %s with %d patches: %w: %s", pkg, root, len(patches), err, said)
	}
	return nil
}

// patched returns the contents of all files that patches change, by their full names.
func patched(ctx context.Context, root string, patches []Patch) (map[string]string, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	goroot, err := run(ctx, root, "env", "GOROOT") // of the Go that root's go.mod asks for
	if err != nil {
		return nil, fmt.Errorf("ask where Go is installed: %w: %s", err, goroot)
	}
	contents := make(map[string]string)
	for i, p := range patches {
		if err := p.apply(root, strings.TrimSpace(goroot), contents); err != nil {
			return nil, fmt.Errorf("patch %d, of %s: %w", i+1, p.File, err)
		}
	}
	return contents, nil
}

// apply changes the file's content among those that have been changed already.
func (p Patch) apply(root, goroot string, contents map[string]string) error {
	base, name := root, p.File
	if rest, ok := strings.CutPrefix(p.File, inGoroot); ok {
		base, name = goroot, rest
	}
	if !filepath.IsLocal(filepath.FromSlash(name)) {
		return errors.New("the name leads out of the module")
	}
	path := filepath.Join(base, filepath.FromSlash(name))
	content, known := contents[path]
	if !known {
		read, err := os.ReadFile(path)
		if err != nil && (p.Old != "" || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
		content, known = string(read), err == nil
	}
	if p.Old == "" {
		if known {
			return errors.New("the file that it should make is there")
		}
		contents[path] = p.New
		return nil
	}
	if n := strings.Count(content, p.Old); n != 1 {
		return fmt.Errorf("%q occurs %d times, not once", p.Old, n)
	}
	contents[path] = strings.Replace(content, p.Old, p.New, 1)
	return nil
}

// writeOverlay writes the contents to files in dir, and returns the name of the one that
// tells the go command of the others.
func writeOverlay(dir string, contents map[string]string) (string, error) {
	replace := make(map[string]string, len(contents))
	for path, content := range contents {
		copied := filepath.Join(dir, strconv.Itoa(len(replace))+"-"+filepath.Base(path))
		if err := os.WriteFile(copied, []byte(content), 0o600); err != nil {
			return "", err
		}
		replace[path] = copied
	}
	listed, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, listed, 0o600)
}

// run runs the go command in root. It returns what that prints; on an error, what it
// prints for people.
func run(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.WaitDelay = root, killWait
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var printed, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &printed, &said
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return said.String(), err
	}
	return printed.String(), nil
}
