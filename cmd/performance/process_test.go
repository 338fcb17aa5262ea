package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func startTest(t *testing.T, script string) *process {
	t.Helper()
	p, err := startProcess(filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// A process is asked to end, is known by what it has started, and tells why it ended.
func TestProcess(t *testing.T) {
	p := startTest(t, "sleep 600 & echo ready; wait")
	if err := p.failure(); err != nil {
		t.Errorf("it runs, and: %v", err)
	}
	var children []int
	for len(children) == 0 {
		var err error
		if children, err = p.children(); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(children[0], syscall.SIGKILL); err != nil { // sh does not
		t.Error(err)
	}
	failed := startTest(t, "echo no room here; exit 3")
	<-failed.ended
	if err := failed.failure(); err == nil || !strings.Contains(err.Error(), "exit status 3): no room here") {
		t.Errorf("its end is told as %v", err)
	}
	if err := failed.stop(); err != nil {
		t.Errorf("stopped again: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"HOME=/root", "ATOLL_NAME=x", "REGISTRY_LOG_LEVEL=debug", "GODEBUG=schedtrace=1", "PATH=/bin"})
	if !slices.Equal(got, []string{"HOME=/root", "PATH=/bin"}) {
		t.Errorf("servers get %q", got)
	}
}

// Addresses are all different, and free.
func TestFreeAddresses(t *testing.T) {
	addresses, err := freeAddresses(20)
	if err != nil || len(slices.Compact(slices.Sorted(slices.Values(addresses)))) != 20 {
		t.Errorf("%q, %v", addresses, err)
	}
}

// What is done before turns is done to the files that it is for.
func TestBetween(t *testing.T) {
	for _, test := range []struct {
		between between
		want    string
		starts  int
	}{{settle, "cache data kept", 0}, {cool, "data kept", 1}, {empty, "cache kept", 1}} {
		s := newStill(t)
		if err := test.between.do(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(s.at.folder)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		if got := strings.Join(names, " "); got != test.want || s.starts != test.starts || s.stops != test.starts {
			t.Errorf("%d: %q are left after %d starts and %d stops, want %q and %d", test.between, got, s.starts, s.stops, test.want, test.starts)
		}
	}
}
