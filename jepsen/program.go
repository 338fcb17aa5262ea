package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/atollregistry/atoll/jepsen/mutant"
)

// programs builds what a run needs.
type programs struct {
	// root is the tree's top folder, dir where programs go.
	root, dir string
}

func newPrograms(ctx context.Context, o *options) (*programs, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module: %w", err)
	}
	p := &programs{root: strings.TrimSpace(string(out)), dir: filepath.Join(o.out, "programs")}
	return p, os.MkdirAll(p.dir, 0o755)
}

// current builds the tree as it is, or a mutant of it, with what all runs want: a
// clock that can jump, and short intervals.
func (p *programs) current(ctx context.Context, name string) (string, error) {
	patches := append(mutant.Clock(), mutant.Tuning()...)
	file := "atoll"
	if name != "" {
		found, err := findMutants(name)
		if err != nil {
			return "", err
		}
		file += "-" + name
		patches = append(patches, found[0].Patches...)
	}
	path := filepath.Join(p.dir, file)
	return path, mutant.Build(ctx, p.root, path, patches)
}

// productCode are the files that the program is made of.
var productCode = []string{"--", "*.go", "go.mod", ":(exclude)jepsen", ":(exclude)*_test.go"}

// of builds the tree of a commit in the same way; without a name it is the one before the last change
// of the program. It fails if that tree can't be built so, since nodes of one cluster need the
// same intervals, and if the program is the same as another.
func (p *programs) of(ctx context.Context, commit, other string) (string, error) {
	if commit == "" {
		changed, err := p.git(ctx, append([]string{"log", "-1", "--format=%H"}, productCode...)...)
		if err != nil {
			return "", err
		}
		commit = changed + "^"
	}
	id, err := p.git(ctx, "rev-parse", "--verify", commit+"^{commit}")
	if err != nil {
		return "", err
	}
	tree, err := os.MkdirTemp("", "atoll-previous-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tree) }()
	if _, err := p.git(ctx, "worktree", "add", "--detach", "--force", tree, id); err != nil {
		return "", err
	}
	defer func() { _, _ = p.git(context.WithoutCancel(ctx), "worktree", "remove", "--force", tree) }()
	path := filepath.Join(p.dir, "atoll-"+id)
	if err := mutant.Build(ctx, tree, path, append(mutant.Clock(), mutant.Tuning()...)); err != nil {
		return "", fmt.Errorf("program of commit %s: %w", id, err)
	}
	same, err := sameFiles(path, other)
	if err == nil && same {
		err = fmt.Errorf("the program of commit %s is the one under test: there are no two versions to mix", id)
	}
	return path, err
}

// sameFiles says whether two files have the same bytes.
func sameFiles(a, b string) (bool, error) {
	first, err := hashFile(a)
	if err != nil {
		return false, err
	}
	second, err := hashFile(b)
	return first == second, err
}

// hashFile returns the SHA-256 of a file.
func hashFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (p *programs) git(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "git", append([]string{"-C", p.root}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
