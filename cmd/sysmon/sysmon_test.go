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
	fmt.Println(os.Getpid(), os.Getenv(variable), strings.Join(os.Args[1:], " "))
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
	for _, c := range []struct{ before, after string }{
		{"", setting},
		{"madvdontneed=1", "madvdontneed=1," + setting},
		{"schedtrace=0", "schedtrace=0"},
	} {
		t.Run(c.before, func(t *testing.T) {
			cmd := exec.Command(executable, "serve", "--name", "a b")
			cmd.Env = append(Without(os.Environ()), childVariable+"=1", variable+"="+c.before)
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%d %s serve --name a b\n", cmd.Process.Pid, c.after)
			if string(out) != want {
				t.Errorf("got %q, want %q", out, want)
			}
		})
	}
}
