package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// The system tests run the program as users do: processes, real clients, kill -9.

const (
	// commandTimeout bounds one client's command, its own retries included.
	commandTimeout = 3 * time.Minute
	// formTimeout bounds how long a cluster may take to be ready, on a machine
	// that is busy with other tests.
	formTimeout = time.Minute
	// stopLimit bounds Ctrl-C.
	stopLimit = 40 * time.Second
)

// skip skips a test for which this machine lacks something. In CI that is a fault.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("can't be skipped in CI: %s", reason)
	}
	t.Skip(reason)
}

func requireTool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			skip(t, name+" is not installed")
		}
	}
}

// buildOnce builds programs of this module for all tests of the run.
type buildOnce struct {
	once sync.Once
	dir  string
	err  error
}

// builtPrograms is shared by the tests of one run; TestMain removes its folder.
var builtPrograms buildOnce

// program returns the path of atoll, or of crane at the version in go.mod.
func program(t *testing.T, name string) string {
	t.Helper()
	b := &builtPrograms
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "atoll-programs-"); b.err != nil {
			return
		}
		for _, pkg := range []string{module + "/cmd/atoll", "github.com/google/go-containerregistry/cmd/crane"} {
			build := exec.Command("go", "build", "-trimpath", "-o", b.dir, pkg)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				b.err = fmt.Errorf("build %s: %w: %s", pkg, err, out)
				return
			}
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, name)
}

// command runs a client and returns what it prints. It fails the test if the
// client fails.
func command(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := tryCommand(t, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryCommand(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	all := &output{}
	cmd.Stdout = io.MultiWriter(&out, all)
	cmd.Stderr = all
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return all.String(), fmt.Errorf("%s: %w after %s:\n%s", strings.Join(argv, " "), err, time.Since(began).Round(time.Millisecond), all.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// output collects what a process prints, while it runs.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// devCluster is a running atoll dev.
type devCluster struct {
	t      *testing.T
	dir    string
	port   int
	cmd    *exec.Cmd
	out    *output
	done   chan struct{}
	byHand map[string]handStarted
}

// startDev starts a cluster in dir and waits until it says that it is ready.
func startDev(t *testing.T, dir string, args ...string) *devCluster {
	t.Helper()
	c := &devCluster{t: t, dir: dir, port: devPort(t, dir), out: &output{}, done: make(chan struct{}), byHand: map[string]handStarted{}}
	args = append([]string{"dev", "--data=" + dir, "--listen=127.0.0.1:" + strconv.Itoa(c.port)}, args...)
	c.cmd = exec.Command(program(t, "atoll"), args...)
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait() // stop looks at how it ended
		close(c.done)
	}()
	t.Cleanup(func() {
		if c.running() {
			_ = c.cmd.Process.Kill() // its children go with it
			<-c.done
		}
		for _, h := range c.byHand {
			_ = h.cmd.Process.Kill()
			_ = h.cmd.Wait()
		}
		if t.Failed() {
			c.dump()
		}
	})
	eventually(t, formTimeout, "the cluster is ready", func() bool {
		if !c.running() {
			t.Fatalf("dev has ended: %s", c.out)
		}
		out := c.out.String()
		// What people are told comes after it.
		return strings.Contains(out, "the cluster is ready") && (slices.Contains(args, "--json") || strings.Contains(out, "Ctrl-C stops everything."))
	})
	return c
}

// devPort is the port of the cluster in dir, or a free one for a new cluster. The
// ports of a killed process may stay busy for a moment.
func devPort(t *testing.T, dir string) int {
	t.Helper()
	plan, err := devConfig{data: dir}.plan()
	if err != nil {
		t.Fatal(err)
	}
	if plan.listen == defaultDevListen {
		return freePort(t)
	}
	eventually(t, 10*time.Second, "the ports of the last start are free", func() bool {
		listener, err := plan.claimPorts()
		if err == nil {
			listener.Close()
		}
		return err == nil
	})
	_, port, err := net.SplitHostPort(plan.listen)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// dump shows what dev and its nodes have said.
func (c *devCluster) dump() {
	c.t.Logf("dev printed:\n%s", c.out)
	for id, h := range c.byHand {
		c.t.Logf("node %s, started by hand, printed:\n%s", id, h.log)
	}
	logs, _ := filepath.Glob(filepath.Join(c.dir, "n*", "log"))
	for _, path := range logs {
		content, _ := os.ReadFile(path)
		const most = 12 << 10
		c.t.Logf("end of %s:\n%s", path, content[max(0, len(content)-most):])
	}
}

func (c *devCluster) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// stop is Ctrl-C. Everything must be gone in time.
func (c *devCluster) stop() {
	c.t.Helper()
	nodes := c.file().Nodes
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-c.done:
	case <-time.After(stopLimit):
		c.t.Fatalf("dev has not stopped %s after Ctrl-C:\n%s", stopLimit, c.out)
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		c.t.Errorf("dev has ended with code %d:\n%s", code, c.out)
	}
	for _, n := range nodes {
		if alive(n.PID) {
			c.t.Errorf("node %s, process %d, has outlived dev", n.ID, n.PID)
		}
	}
}

// file reads dev.json.
func (c *devCluster) file() devFile {
	c.t.Helper()
	content, err := os.ReadFile(filepath.Join(c.dir, devFileName))
	if err != nil {
		c.t.Fatal(err)
	}
	var file devFile
	if err := json.Unmarshal(content, &file); err != nil {
		c.t.Fatalf("dev.json: %v: %s", err, content)
	}
	return file
}

func (c *devCluster) node(id string) devFileNode {
	c.t.Helper()
	nodes := c.file().Nodes
	i := slices.IndexFunc(nodes, func(n devFileNode) bool { return n.ID == id })
	if i < 0 {
		c.t.Fatalf("dev.json has no node %s", id)
	}
	return nodes[i]
}

// host is HOST:PORT of the balancer, or of a node.
func (c *devCluster) host(id string) string {
	c.t.Helper()
	if id == "" {
		return withoutScheme(c.file().Registry)
	}
	return withoutScheme(c.node(id).Registry)
}

func withoutScheme(url string) string {
	return strings.TrimPrefix(strings.TrimPrefix(url, "http://"), "https://")
}

// kill is kill -9 of one node.
func (c *devCluster) kill(id string) {
	c.t.Helper()
	pid := c.node(id).PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatalf("kill -9 of node %s, process %d: %v", id, pid, err)
	}
	eventually(c.t, 10*time.Second, fmt.Sprintf("node %s, process %d, is gone", id, pid), func() bool { return !alive(pid) })
	if h, ok := c.byHand[id]; ok && h.cmd.Process.Pid == pid {
		_ = h.cmd.Wait() // it was killed
	}
}

// restart runs a killed node's argv, as dev.json says, and waits until dev has
// seen it and it is ready.
func (c *devCluster) restart(id string) {
	c.t.Helper()
	c.startByHand(id)
	c.waitBack(id)
}

// restartAll brings back a cluster whose nodes are all dead.
func (c *devCluster) restartAll() {
	c.t.Helper()
	nodes := c.file().Nodes
	for _, n := range nodes {
		c.startByHand(n.ID)
	}
	for _, n := range nodes {
		c.waitBack(n.ID)
	}
}

// handStarted is a node that the test has started by its argv.
type handStarted struct {
	cmd *exec.Cmd
	log *output
}

func (c *devCluster) startByHand(id string) {
	c.t.Helper()
	argv := c.node(id).Argv
	h := handStarted{cmd: exec.Command(argv[0], argv[1:]...), log: &output{}}
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	if err := h.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.byHand[id] = h
}

// waitBack waits until dev has seen the new process and the node is ready.
func (c *devCluster) waitBack(id string) {
	c.t.Helper()
	n, log, pid := c.node(id), c.byHand[id].log, c.byHand[id].cmd.Process.Pid
	deadline := time.Now().Add(formTimeout)
	eventually(c.t, formTimeout, fmt.Sprintf("node %s is back as process %d", id, pid), func() bool {
		back := c.node(id).PID == pid && httpStatus(c.t, n.Operations+"/readyz") == http.StatusOK
		if !back && time.Now().Add(time.Second).After(deadline) {
			c.t.Logf("node %s says:\n%s", id, log)
		}
		return back
	})
}

// leader names the node that leads.
func (c *devCluster) leader() string {
	c.t.Helper()
	leader := ""
	eventually(c.t, formTimeout, "there is a leader", func() bool {
		for _, n := range c.status().Nodes {
			if n.Leader {
				leader = n.ID
			}
		}
		return leader != ""
	})
	return leader
}

// status is atoll status --json.
func (c *devCluster) status() node.Status {
	c.t.Helper()
	var status node.Status
	out := command(c.t, program(c.t, "atoll"), "status", "--json", "--data="+c.dir)
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		c.t.Fatalf("status prints %q: %v", out, err)
	}
	return status
}

// waitHealthy waits until all nodes are there and all blobs whole.
func (c *devCluster) waitHealthy() {
	c.t.Helper()
	var last node.Status
	deadline := time.Now().Add(formTimeout)
	eventually(c.t, formTimeout, "the cluster is healthy", func() bool {
		last = c.status()
		healthy := !slices.ContainsFunc(last.Nodes, func(n node.NodeStatus) bool { return n.State != "active" })
		if !healthy && time.Now().Add(time.Second).After(deadline) {
			c.t.Logf("status is %+v", last)
		}
		return healthy
	})
}

// httpStatus is the answer's status code, 0 without an answer.
func httpStatus(t *testing.T, url string) int {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return 0
	}
	return response.StatusCode
}

// request does one HTTP request and returns the answer with its body read.
func request(t *testing.T, method, url string, body []byte) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: read answer: %v", method, url, err)
	}
	return response, answer
}

// removeBuiltPrograms ends what program began.
func removeBuiltPrograms() error {
	if builtPrograms.dir == "" {
		return nil
	}
	if err := os.RemoveAll(builtPrograms.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
