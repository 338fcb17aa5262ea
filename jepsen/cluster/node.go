package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// restartDelay is how long a node that ended by itself stays down, as under a supervisor.
	restartDelay = time.Second
	// killTimeout bounds the end of a killed process, which may be stuck in the kernel.
	killTimeout = 20 * time.Second
	// tailBytes is how much of a node's log is kept of each end.
	tailBytes = 4000
)

// Node is a node of the cluster.
type Node struct {
	Name string
	// Folders are its data folders, of which the first has the metadata.
	Folders []string
	// Disks are where they are; there are none if the folders have no disks of their own.
	Disks []*Disk

	cluster *Cluster
	host    Host
	member  bool // guarded by the cluster's mutex
	ready   atomic.Bool

	mu      sync.Mutex // guards the fields below
	program string
	// due is how the process is to end. If it is not to end at all, it is started again.
	due ending
	cmd *exec.Cmd
	// exited is closed when the process has ended.
	exited chan struct{}
	exits  []Exit
}

// SetProgram changes what the next start runs.
func (n *Node) SetProgram(path string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.program = path
}

// URL returns where the node's registry port is, without a slash at the end.
func (n *Node) URL() string { return "http://" + net.JoinHostPort(n.host.Address(), registryPort) }

// Pid returns the process id, 0 when it does not run.
func (n *Node) Pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// State says in words whether the process runs.
func (n *Node) State() string {
	if pid := n.Pid(); pid != 0 {
		return fmt.Sprintf("process %d runs", pid)
	}
	return "no process runs"
}

// Exits returns the ends of its processes that nobody asked for.
func (n *Node) Exits() []Exit {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]Exit(nil), n.exits...)
}

// Start starts the process, unless it runs.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.due = notAtAll
	if n.cmd != nil {
		return nil
	}
	return n.start()
}

// start starts the process. The caller holds n.mu.
func (n *Node) start() error {
	logFile, err := os.OpenFile(n.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	defer logFile.Close()
	cmd := exec.Command(n.program, n.argv()...)
	cmd.Env = os.Environ()
	for _, variable := range n.cluster.cfg.Env {
		cmd.Env = append(cmd.Env, strings.ReplaceAll(variable, "{node}", n.Name))
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = ChildAttributes()
	if err := n.host.Do(cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	exited := make(chan struct{})
	n.cmd, n.exited = cmd, exited
	n.cluster.all.Go(func() { n.await(cmd, exited) })
	return nil
}

func (n *Node) logPath() string { return filepath.Join(n.cluster.cfg.Dir, n.Name+".log") }

func (n *Node) argv() []string {
	address := func(port string) string { return net.JoinHostPort(n.host.Address(), port) }
	certificates := filepath.Join(n.cluster.certificates(), n.Name)
	argv := []string{
		"serve",
		"--name=" + n.Name,
		"--data=" + strings.Join(n.Folders, ","),
		"--registry-listen=" + address(registryPort),
		"--registry-plain-http", "--auth-enabled=false",
		"--cluster-listen=" + address(clusterPort),
		"--cluster-address=" + address(clusterPort),
		"--cluster-ca=" + filepath.Join(certificates, "ca.crt"),
		"--cluster-cert=" + filepath.Join(certificates, "node.crt"),
		"--cluster-key=" + filepath.Join(certificates, "node.key"),
		"--operations-listen=" + address(operationsPort),
	}
	// The list must be the same on all nodes, and names those that form the cluster.
	for _, other := range n.cluster.nodes[:n.cluster.cfg.Nodes] {
		argv = append(argv, "--join="+net.JoinHostPort(other.host.Address(), clusterPort))
	}
	return append(argv, n.cluster.cfg.Settings...)
}

// await waits for the end of a process, and starts another one if it was not to end.
func (n *Node) await(cmd *exec.Cmd, exited chan struct{}) {
	err := reap(cmd, &n.mu)
	n.cmd = nil
	due := n.due
	fits := due.fits(cmd.ProcessState)
	if !fits {
		n.exits = append(n.exits, Exit{Node: n.Name, Time: time.Now(), Asked: string(due), How: exitText(err), Tail: n.tail()})
	}
	n.mu.Unlock()
	close(exited)
	if !fits {
		n.cluster.cfg.Log("%s ended by itself: %s", n.Name, exitText(err))
	}
	if due != notAtAll {
		return
	}
	time.Sleep(restartDelay)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.due == notAtAll && n.cmd == nil {
		if err := n.start(); err != nil {
			n.cluster.cfg.Log("%s does not start: %v", n.Name, err)
		}
	}
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// tail returns the end of the node's log.
func (n *Node) tail() string {
	content, err := os.ReadFile(n.logPath())
	if err != nil {
		return err.Error()
	}
	return string(bytes.ToValidUTF8(content[max(0, len(content)-tailBytes):], nil))
}

// LogSize returns how long the node's log is, for LogFrom.
func (n *Node) LogSize() int64 {
	info, err := os.Stat(n.logPath())
	if err != nil {
		return 0
	}
	return info.Size()
}

// LogFrom returns what the node has written to its log since LogSize told a size.
func (n *Node) LogFrom(size int64) string {
	content, err := os.ReadFile(n.logPath())
	if err != nil || int64(len(content)) < size {
		return ""
	}
	return string(content[size:])
}

// Kill ends the process at once (kill -9), and keeps it down.
func (n *Node) Kill() error { return n.end(syscall.SIGKILL, byKill) }

// Terminate asks the process to end (SIGTERM), waits for it, and keeps it down. An exit status
// that is not 0 is remembered.
func (n *Node) Terminate() error { return n.end(syscall.SIGTERM, onRequest) }

// LetGo has the process end by itself, with the exit status of a removed node, without being
// started again.
func (n *Node) LetGo() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.due = whenRemoved
}

func (n *Node) end(signal syscall.Signal, due ending) error {
	n.mu.Lock()
	n.due = due
	cmd := n.cmd
	n.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", n.Name, err)
	}
	err := n.AwaitEnd(killTimeout)
	if err != nil && signal == syscall.SIGKILL {
		return fmt.Errorf("%s is stuck in the kernel: %v", n.Name, err) //nolint:errorlint // it is not the cluster's fault
	}
	return err
}

// AwaitEnd waits until the process has ended. If it does not, the error is ErrNotSo.
func (n *Node) AwaitEnd(timeout time.Duration) error {
	n.mu.Lock()
	exited, due := n.exited, n.due
	n.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-exited:
		return nil
	case <-timer.C:
		return fmt.Errorf("%w, after %s, that %s has ended: %s", ErrNotSo, timeout, n.Name, due)
	}
}

// During calls f with the id of the process, which stays that of this process, even if it ends,
// until f has returned.
func (n *Node) During(f func(pid int) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return fmt.Errorf("%s does not run", n.Name)
	}
	return f(n.cmd.Process.Pid)
}

// Pause stops the process (SIGSTOP), Resume lets it go on.
func (n *Node) Pause() error { return n.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (n *Node) Resume() error { return n.signal(syscall.SIGCONT) }

func (n *Node) signal(signal syscall.Signal) error {
	return n.During(func(int) error { return n.cmd.Process.Signal(signal) })
}

// LosePower drops what was not durable, and ends the process, if it does not end by itself once its
// disks fail; the node stays down, and its disks are ready for a start.
func (n *Node) LosePower() error {
	n.mu.Lock()
	n.due = anyhow
	n.mu.Unlock()
	faults := make([]error, len(n.Disks))
	var all sync.WaitGroup
	for i, disk := range n.Disks {
		all.Go(func() { faults[i] = disk.LosePower() })
	}
	all.Wait()
	return errors.Join(errors.Join(faults...), n.end(syscall.SIGKILL, anyhow), n.reattach())
}

// Reattach ends the process and makes its disks ready for a start.
func (n *Node) Reattach() error {
	if err := n.Kill(); err != nil {
		return err
	}
	return n.reattach()
}

func (n *Node) reattach() error {
	var faults []error
	for _, disk := range n.Disks {
		faults = append(faults, disk.Reattach())
	}
	return errors.Join(faults...)
}

// Wipe removes the data folders of a node that is down.
func (n *Node) Wipe() error {
	if n.Pid() != 0 {
		return fmt.Errorf("%s runs", n.Name)
	}
	var faults []error
	for _, folder := range n.Folders {
		faults = append(faults, os.RemoveAll(folder))
	}
	return errors.Join(faults...)
}

func (n *Node) close() error {
	err := n.Kill()
	for _, disk := range n.Disks {
		err = errors.Join(err, disk.detach())
	}
	return err
}
