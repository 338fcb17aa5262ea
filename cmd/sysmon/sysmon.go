// Package sysmon keeps the Go runtime's monitor from taking a part of the processor.
//
// That thread (sysmon, in runtime/proc.go) sleeps deeply while a process has nothing to do. It is woken by
// the first system call after that, and then looks every 20 µs for a while for what it could do. A server
// that has something to do every now and then, as one that serves small requests or waits for
// disks, wakes it thousands of times a second, which in a virtual machine, where each timer is a
// matter for the host, takes up to a sixth of the server's processor time, and as much again by what it interrupts.
//
// The runtime has no setting for that, but one on which it depends: with schedtrace the
// monitor never sleeps deeply, and so is not woken, but comes round every 10 ms while there is nothing for it to do.
//
// And where it looks every 20 µs it sleeps longer than that: the kernel may wake a thread later than it asked for, by
// the thread's timer slack (prctl(2), PR_SET_TIMERSLACK), which is 50 µs by default and here 1 ms. A server that writes files
// and syncs them gives the monitor something to find all the time.
//
// What that costs:
//
//   - The setting has a line written to stderr whenever the clock, which begins with the machine's start, has gone so
//     many milliseconds beyond the last one: with the largest number, 24.8 days. A machine that
//     has run for longer has one at each start of a process. A panic is preceded by the scheduler's state.
//   - What else the monitor does comes later, by 10 ms or two times that: taking processors away from goroutines
//     that run for long, or wait in system calls while no other processor is free. When it found some of these, it looks every 20 µs
//     again for a while. With a single processor each wait for the disk could hold up everything else that long,
//     so there all stays as it is.
//   - All timers of the process may be late by 1 ms, and so may be the naps of 3 µs that the runtime takes before one thread takes
//     another's work.
package sysmon

import (
	"os"
	"runtime"
	"strings"
	"syscall"
)

// setting is what the runtime is to find in GODEBUG. The number is the largest that
// it takes.
const setting = "schedtrace=2147483647"

// Quiet starts this process anew with the setting, under the same process id, unless it has one of that name or
// a single processor.
// It is to be called before anything else is done, and does not return then. Where that can't be
// done the process goes on as it is, which is only slower.
func Quiet() {
	settings := os.Getenv(variable)
	if runtime.GOOS != "linux" || runtime.GOMAXPROCS(0) < 2 || strings.Contains(settings, "schedtrace=") {
		return
	}
	executable, err := os.Executable()
	if err != nil {
		return
	}
	if settings != "" {
		settings += ","
	}
	undo := slacken()
	defer undo()
	environ := append(Without(os.Environ()), variable+"="+settings+setting)
	_ = syscall.Exec(executable, os.Args, environ) // It returns if it can't.
}

const variable = "GODEBUG"

// Without returns an environment without settings of the Go runtime, for programs that are to have their own.
func Without(environ []string) []string {
	var others []string
	for _, v := range environ {
		if !strings.HasPrefix(v, variable+"=") {
			others = append(others, v)
		}
	}
	return others
}
