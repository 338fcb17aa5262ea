package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atollregistry/atoll/cmd/sysmon"
)

const (
	// stopTimeout is how long a server may take to stop before it is killed.
	stopTimeout = 30 * time.Second
	// maxLogTail is how much of its log is told when a server fails, in bytes.
	maxLogTail = 1000
)

// process is one that this program has started.
type process struct {
	cmd *exec.Cmd
	// log is the file with all that it prints.
	log string
	// ended is closed when it is gone.
	ended chan struct{}
}

// startProcess starts a server that ends with this program, however that ends: the kernel
// stops it when the calling thread has gone (PR_SET_PDEATHSIG in prctl(2)). It is the main
// goroutine that calls, which keeps its thread. Ctrl-C does not reach the server, so that it is
// stopped in order. The caller must stop it.
func startProcess(log string, argv ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer out.Close() // the process has its own
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: log, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = environment(os.Environ())
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() { // ends with the process, for which stop and kill wait
		defer close(p.ended)
		_ = p.cmd.Wait() // how it ended stays in cmd.ProcessState
	}()
	return p, nil
}

// environment is without the variables by which servers are configured, and without those of the Go runtime: what they
// are told is in their command lines and files alone, and the rest is as they come.
func environment(all []string) []string {
	return slices.DeleteFunc(sysmon.Without(all), func(entry string) bool {
		return strings.HasPrefix(entry, "ATOLL_") || strings.HasPrefix(entry, "REGISTRY_")
	})
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// failure is an error with the end of the log if the process has ended, nil if it runs.
func (p *process) failure() error {
	select {
	case <-p.ended:
	default:
		return nil
	}
	said, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Errorf("%s has ended (%s), and its log can't be read: %w", p.name(), p.cmd.ProcessState, err)
	}
	said = bytes.TrimSpace(said)
	return fmt.Errorf("%s has ended (%s): %s", p.name(), p.cmd.ProcessState, said[max(0, len(said)-maxLogTail):])
}

func (p *process) name() string { return filepath.Base(p.cmd.Path) }

// stop asks the process to end, kills it if it takes too long, and returns when it is gone.
func (p *process) stop() error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not stop within %s, and was killed", p.name(), stopTimeout), p.kill())
	}
}

// kill ends the process at once, and returns when it is gone.
func (p *process) kill() error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.ended
	return nil
}

// signal sends one unless the process is gone.
func (p *process) signal(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s, process %d: %w", p.name(), p.pid(), err)
	}
	return nil
}

// children are the ids of the processes that it has started itself.
func (p *process) children() (pids []int, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", p.pid()))
	if err != nil {
		return nil, fmt.Errorf("find what %s has started: %w", p.name(), err)
	}
	for _, field := range strings.Fields(string(content)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("find what %s has started: %w", p.name(), err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
