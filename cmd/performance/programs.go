package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs are the paths of all servers.
type programs struct{ atoll, dockerRegistry, nginx string }

// findPrograms builds atoll into a folder, and looks for the others.
func findPrograms(ctx context.Context, root, folder string) (p programs, err error) {
	var faults [2]error
	p.dockerRegistry, faults[0] = installed(string(dockerRegistry))
	p.nginx, faults[1] = installed(string(nginx))
	if err := errors.Join(faults[:]...); err != nil {
		return programs{}, err
	}
	p.atoll = filepath.Join(folder, "atoll")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=true", "-o", p.atoll, "./cmd/atoll")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return programs{}, fmt.Errorf("build atoll: %w: %s", err, out)
	}
	return p, nil
}

// installed returns a program's path. Not everybody has the folder of servers in PATH.
func installed(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%[1]s is not installed: apt-get install %[1]s", name)
}

// moduleRoot is the folder of the module that this program is run in.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for the module's folder: %w", err)
	}
	path := strings.TrimSpace(string(out))
	if path == "" || path == os.DevNull {
		return "", errors.New("this is no folder of a Go module: run it in a clone of the repository")
	}
	return filepath.Dir(path), nil
}
