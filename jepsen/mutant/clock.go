package mutant

// ClockVariable is the environment variable that names the clock file of a process built
// with Clock. It stays there, since the process may start itself anew, and does not begin as atoll's settings do, which
// are checked.
const ClockVariable = "JEPSEN_CLOCK"

// Clock makes the wall clock of the process jump while it runs, as somebody who sets the
// machine's clock would, and leaves the monotonic clock alone: timers, deadlines and
// differences between two times of one process go on as they were. Whatever calls
// time.Now sees the jump: records, log lines, certificates.
//
// The process looks at its clock file every 50 ms for a duration as text, like "-1h30m",
// by which its clock is ahead of the machine's, and once before main begins. A file that is
// not there, or has anything else in it, leaves the clock as it is. So write to another
// file and rename it: half a duration may be one as well.
//
// What the kernel stamps, such as the times of files, does not jump.
func Clock() []Patch {
	return []Patch{
		{
			File: "GOROOT/src/time/time.go",
			Old:  "\tsec, nsec, mono := runtimeNow()\n",
			New:  "\tsec, nsec, mono := runtimeNow()\n\tsec, nsec = jumped(sec, nsec)\n",
		},
		{File: "GOROOT/src/time/jump.go", New: jumpSource},
		{File: "cmd/atoll/clockjump.go", New: clockjumpSource},
	}
}

const jumpSource = `package time

import "sync/atomic"

// wallJump is by how many nanoseconds the wall clock is ahead of the machine's.
var wallJump atomic.Int64

// SetJump has the wall clock be ahead of the machine's from now on.
func SetJump(d Duration) { wallJump.Store(int64(d)) }

func jumped(sec int64, nsec int32) (int64, int32) {
	jump := wallJump.Load()
	sec, ahead := sec+jump/1e9, int64(nsec)+jump%1e9
	switch {
	case ahead < 0:
		return sec - 1, int32(ahead + 1e9)
	case ahead >= 1e9:
		return sec + 1, int32(ahead - 1e9)
	}
	return sec, int32(ahead)
}
`

const clockjumpSource = `package main

import (
	"os"
	"strings"
	"time"
)

func init() {
	path := os.Getenv("` + ClockVariable + `")
	if path == "" {
		return
	}
	jump := func() {
		content, err := os.ReadFile(path)
		if err != nil {
			return
		}
		if d, err := time.ParseDuration(strings.TrimSpace(string(content))); err == nil {
			time.SetJump(d)
		}
	}
	jump()
	go func() {
		for {
			time.Sleep(50 * time.Millisecond)
			jump()
		}
	}()
}
`
