package consensus

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stoppedEnv makes the test's own program the process that is stopped.
const stoppedEnv = "ATOLL_TEST_STOPPED"

// A process that is stopped in the middle of a write to its log, for longer than a disk may
// take, goes on when it is continued: the disk was not late.
func TestWriteWhileStopped(t *testing.T) {
	const limit = 2 * time.Second
	if os.Getenv(stoppedEnv) != "" {
		writeWhileStopped(limit)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^TestWriteWhileStopped$")
	child.Env = append(os.Environ(), stoppedEnv+"=1")
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "writing" {
		t.Fatalf("the child says %q, %v", lines.Text(), lines.Err())
	}
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// It is stopped for so long: that is no wait for something to happen.
	time.Sleep(limit + time.Second)
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Error(err)
	}
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	lines.Scan()
	if lines.Text() != "written" {
		t.Errorf("the child says %q, %v", lines.Text(), lines.Err())
	}
	if err := errors.Join(in.Close(), child.Wait()); err != nil {
		t.Error(err)
	}
}

// writeWhileStopped writes for as long as nothing comes from standard input.
func writeWhileStopped(limit time.Duration) {
	d := &disk{timeout: limit, life: newLife(func(error) {})}
	var wait sync.WaitGroup
	wait.Go(func() {
		d.write("test", func() error {
			fmt.Println("writing")
			_, err := os.Stdin.Read(make([]byte, 1))
			return err
		})
	})
	wait.Wait()
	if err := d.life.failure(); err != nil {
		fmt.Println("failed:", err)
		return
	}
	fmt.Println("written")
}

// What is late is told once, also if it ends then.
func TestWatch(t *testing.T) {
	late := make(chan struct{}, 2)
	w := startWatch(20*time.Millisecond, func() { late <- struct{}{} })
	select {
	case <-late:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody is told")
	}
	if w.stop() {
		t.Error("it was in time")
	}
	if in := startWatch(time.Hour, func() { late <- struct{}{} }); !in.stop() {
		t.Error("it was late")
	}
	if len(late) > 0 {
		t.Error("told twice")
	}
}
