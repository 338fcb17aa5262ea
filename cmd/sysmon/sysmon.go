// Package sysmon keeps the Go runtime's monitor from taking a part of the processor.
//
// That thread (sysmon, in runtime/proc.go) sleeps deeply while a process has nothing to do. It is woken by
// the first system call after that, and then looks every 20 µs for a while for what it could do. A server
// that has something to do every now and then, as one that serves small requests or waits for
// disks, wakes it thousands of times a second, which in a virtual machine, where each timer is a
// matter for the host, takes up to a sixth of the server's processor time, and as much again by what it interrupts.
//
// The runtime has no setting for that, but one on which it depends: with schedtrace the
// monitor never sleeps deeply, and so is not woken, but comes round every 10 ms. That setting has a
// line written to stderr each time that so many milliseconds have passed; with the
// longest that there is, one in 24.8 days.
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

// Quiet starts this process anew with the setting, under the same process id, unless it has one of that name.
// It is to be called before anything else is done, and does not return then. Where that can't be
// done the process goes on as it is, which is only slower.
func Quiet() {
	settings := os.Getenv(variable)
	if runtime.GOOS != "linux" || strings.Contains(settings, "schedtrace=") {
		return
	}
	executable, err := os.Executable()
	if err != nil {
		return
	}
	if settings != "" {
		settings += ","
	}
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
