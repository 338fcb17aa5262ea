package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is where something was measured, and what. Reports of different machines are not
// put together.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	GiB    int    `json:"memory_gib"`
	Kernel string `json:"kernel"`
	// Atoll is the program's version, with its commit and that of Go; the others are as they say themselves.
	Atoll          string `json:"atoll"`
	DockerRegistry string `json:"docker_registry"`
	Nginx          string `json:"nginx"`
}

// thisMachine asks the kernel, and each program for its version.
func thisMachine(ctx context.Context, p programs) (m machine, err error) {
	var faults [6]error
	m.Cores = runtime.NumCPU()
	m.CPU, faults[0] = procValue("/proc/cpuinfo", "model name", runtime.GOARCH) // not every architecture has names
	m.GiB, faults[1] = memoryGiB()
	m.Kernel, faults[2] = kernel()
	m.Atoll, faults[3] = version(ctx, p.atoll, "version")
	m.DockerRegistry, faults[4] = version(ctx, p.dockerRegistry, "--version")
	m.Nginx, faults[5] = version(ctx, p.nginx, "-v")
	return m, errors.Join(faults[:]...)
}

// String is one line for people.
func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, %d GiB of memory, Linux %s; %s; %s; %s.", m.CPU, m.Cores, m.GiB, m.Kernel, m.Atoll, m.DockerRegistry, m.Nginx)
}

// procValue returns the first value with a name in a file of /proc, or what is to do without.
func procValue(path, name, otherwise string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(content)) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return otherwise, nil
}

// memoryGiB is how much memory there is, rounded.
func memoryGiB() (int, error) {
	text, err := procValue("/proc/meminfo", "MemTotal", "")
	if err != nil {
		return 0, err
	}
	kb, err := strconv.Atoi(strings.TrimSuffix(text, " kB"))
	if err != nil {
		return 0, fmt.Errorf("/proc/meminfo: %w", err)
	}
	return (kb + mib/2) / mib, nil
}

func kernel() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's version: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}

// version is what a program says of itself, with its name.
func version(ctx context.Context, program, flag string) (string, error) {
	cmd := exec.CommandContext(ctx, program, flag)
	cmd.Args[0] = filepath.Base(program) // some print it
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, flag, err, bytes.TrimSpace(out))
	}
	return strings.Join(strings.Fields(string(out)), " "), nil
}
