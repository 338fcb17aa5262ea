package sysmon

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

const childVariable = "ATOLL_TEST_SYSMON"

// TestMain is also the program that the test starts.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	Quiet()
	slack, _ := os.ReadFile("/proc/self/timerslack_ns")
	fmt.Println(os.Getpid(), os.Getenv(variable), strings.TrimSpace(string(slack)), strings.Join(os.Args[1:], " "))
}

// The process that a service manager has started is the one that runs, with its
// arguments and with what the operator has set.
func TestQuiet(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOMAXPROCS(0) < 2 {
		t.Skip("only Linux with several processors is known to gain")
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A child has its parent's, and more only in place of the usual one.
	own, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Skip("this kernel does not tell of the timer slack: ", err)
	}
	before, after := strings.TrimSpace(string(own)), "1000000"
	if before != "50000" {
		after = before
	}
	for _, c := range []struct{ before, after, slack string }{
		{"", setting, after},
		{"madvdontneed=1", "madvdontneed=1," + setting, after},
		{"schedtrace=0", "schedtrace=0", before},
	} {
		t.Run(c.before, func(t *testing.T) {
			cmd := exec.Command(executable, "serve", "--name", "a b")
			cmd.Env = append(Without(os.Environ()), childVariable+"=1", variable+"="+c.before)
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%d %s %s serve --name a b\n", cmd.Process.Pid, c.after, c.slack)
			if string(out) != want {
				t.Errorf("got %q, want %q", out, want)
			}
		})
	}
}
