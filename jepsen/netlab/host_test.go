//go:build linux

package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// namespaceOf returns what the kernel calls the namespace of a host.
func namespaceOf(t testing.TB, h *Host) string {
	t.Helper()
	var link string
	err := h.Do(func() error {
		var err error
		link, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// holders returns the threads and the open files, of all processes, that keep a namespace.
func holders(t testing.TB, namespace string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if link, err := os.Readlink(path); err == nil && link == namespace {
				found = append(found, path)
			}
		}
	}
	return found
}

// threadsAway returns the threads of this process that are in another namespace than this one.
func threadsAway(t testing.TB, home string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(paths, func(path string) bool {
		link, err := os.Readlink(path)
		return err != nil || link == home
	})
}

func TestDialsLeaveThreadsAtHome(t *testing.T) {
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	network, hosts := newNetwork(t, "n1", "n2", "n3")
	address := serve(t, hosts[1], echo)
	lost := serve(t, hosts[2], echo)
	setLink(t, network, "n1", "n3", Link{Cut: true})
	ctx, cancel := context.WithCancel(t.Context())
	var hanging, work sync.WaitGroup
	const hung = 300
	for range hung { // these must not take threads
		hanging.Go(func() {
			if conn, err := hosts[0].DialContext(ctx, "tcp", lost); !errors.Is(err, context.Canceled) {
				t.Errorf("dial over a cut link: %v %v", conn, err)
			}
		})
	}
	for range 30 {
		work.Go(func() {
			for range 10 {
				conn, err := hosts[0].DialContext(t.Context(), "tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
				if link, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || link != home {
					t.Errorf("after a dial the thread is in %s, not %s: %v", link, home, err)
				}
			}
		})
	}
	work.Wait()
	eventually(t, "all dials hang", func() bool { return network.Counters()[Pair{"n1", "n3"}].Dropped >= hung })
	eventually(t, "threads are at home", func() bool { return len(threadsAway(t, home)) == 0 })
	if threads, err := filepath.Glob("/proc/self/task/*"); err != nil || len(threads) >= hung {
		t.Errorf("%d threads while %d dials hang: %v", len(threads), hung, err)
	}
	cancel()
	hanging.Wait()
}

func TestChildSeesItsNamespaceOnly(t *testing.T) {
	_, hosts := newNetwork(t, "n1", "n2")
	var output []byte
	err := hosts[0].Do(func() error {
		var err error
		output, err = exec.Command("cat", "/proc/self/net/dev").Output()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var devices []string
	for line := range strings.Lines(string(output)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			devices = append(devices, strings.TrimSpace(name))
		}
	}
	slices.Sort(devices)
	if !slices.Equal(devices, []string{deviceName, "lo"}) {
		t.Errorf("a child sees %v", devices)
	}
	if one, two := namespaceOf(t, hosts[0]), namespaceOf(t, hosts[1]); one == two {
		t.Error("two hosts share a namespace")
	}
}

func TestDoReturnsTheError(t *testing.T) {
	_, hosts := newNetwork(t, "n1")
	mine := errors.New("mine")
	if err := hosts[0].Do(func() error { return mine }); err != mine {
		t.Errorf("Do returned %v", err)
	}
	if err := hosts[0].Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do returned no error of a function that did not return")
	}
}

func TestDialRefusesNames(t *testing.T) {
	_, hosts := newNetwork(t, "n1")
	for _, address := range []string{"localhost:80", "10.77.0.1", ""} {
		if _, err := hosts[0].DialContext(t.Context(), "tcp", address); err == nil || !strings.Contains(err.Error(), "n1") {
			t.Errorf("dial %q: %v", address, err)
		}
	}
}

// networkHolder makes this test program a process that has a network until it is killed.
const networkHolder = "NETLAB_TEST_HOLDER"

func TestNothingOutlivesTheProcess(t *testing.T) {
	requireRoot(t)
	if os.Getenv(networkHolder) != "" {
		holdNetwork(t)
	}
	child := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNothingOutlivesTheProcess$")
	child.Env = append(os.Environ(), networkHolder+"=1")
	child.Stderr = os.Stderr
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var namespaces []string
	for lines := bufio.NewScanner(output); len(namespaces) < 2 && lines.Scan(); {
		namespaces = append(namespaces, lines.Text())
	}
	held := 0
	for _, namespace := range namespaces {
		held += len(holders(t, namespace))
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if len(namespaces) != 2 || held < 2 {
		t.Fatalf("the child told of namespaces %v, held by %d", namespaces, held)
	}
	for _, namespace := range namespaces {
		eventually(t, "nothing holds "+namespace, func() bool { return len(holders(t, namespace)) == 0 })
	}
}

// holdNetwork prints the namespaces of two hosts, and waits for the end.
func holdNetwork(t *testing.T) {
	network, err := New(netip.MustParsePrefix("10.77.0.0/24"), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "n2"} {
		host, err := network.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(namespaceOf(t, host))
	}
	<-time.After(3 * patience) // the parent kills it long before
	os.Exit(1)
}
