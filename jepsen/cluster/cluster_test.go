package cluster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program builds atoll.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "atoll")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/atollregistry/atoll/cmd/atoll")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return path
}

// skip skips a test for what the machine lacks; in CI that is a fault.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("can't be skipped in CI: %s", reason)
	}
	t.Skip(reason)
}

func TestCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	number := 10
	next := func(string) (Host, error) {
		number++
		return LoopbackHost(number)
	}
	client, err := next("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(ctx, Config{Program: program(t), Dir: t.TempDir(), Nodes: 3, Spares: 1, Host: next, Client: client, Log: t.Logf})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if members, spares := len(c.Members()), len(c.Spares()); members != 3 || spares != 1 {
		t.Fatalf("%d members and %d spares", members, spares)
	}
	leader := c.Leader(ctx)
	if leader == nil {
		t.Fatal("nobody leads")
	}
	if offset, err := c.ClockOffset(ctx, leader); err != nil || offset.Abs() > time.Second {
		t.Errorf("the clock is off by %s, %v", offset, err)
	}
	identity := func() string {
		status, err := c.View(ctx, leader)
		if err != nil || status.Find(leader.Name) == nil {
			t.Fatalf("%+v, %v", status, err)
		}
		return status.Find(leader.Name).UUID
	}
	before := identity()
	if err := leader.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.healthy(ctx); err == nil {
		t.Error("a cluster with a dead node is well")
	}
	if err := leader.Wipe(); err != nil {
		t.Fatal(err)
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	for _, wait := range []func(context.Context) error{c.WaitHealthy, c.ScrubClean, c.WaitSame, c.WaitSwept, c.Verify} {
		if err := wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if after := identity(); after == before || after == "" {
		t.Errorf("it lost its data, and was %q and is %q", before, after)
	}
	if err := leader.Terminate(); err != nil {
		t.Fatal(err)
	}
	if exits := leader.Exits(); len(exits) != 0 {
		t.Errorf("it was killed, and counts as ended by itself: %v", exits)
	}
}

// A node that ends by itself is started again, and that is remembered.
func TestNodeIsStartedAgain(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	client, err := LoopbackHost(20)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(ctx, Config{
		Program: program(t), Dir: t.TempDir(), Nodes: 1, Settings: []string{"--bootstrap"}, Client: client, Log: t.Logf,
		Host: func(string) (Host, error) { return LoopbackHost(21) },
	})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	n := c.Members()[0]
	if err := exec.Command("kill", "-ABRT", strings.TrimSpace(strings.Split(n.State(), " ")[1])).Run(); err != nil {
		t.Fatal(err)
	}
	if err := c.Eventually(ctx, time.Minute, "it runs again", func() error {
		if len(n.Exits()) == 0 || n.Pid() == 0 {
			return os.ErrNotExist
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx, time.Minute); err != nil {
		t.Error(err)
	}
	if how := n.Exits()[0].How; !strings.Contains(how, "exit status 2") {
		t.Errorf("it ended by %q", how)
	}
}
