package sysmon

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// slack is the timer slack of this process.
	slack = time.Millisecond
	// usualSlack is the kernel's default (init_task in init/init_task.c).
	usualSlack = 50 * time.Microsecond
)

// slacken gives this thread the slack, and so all threads of what it executes, unless it has another than the usual one:
// that is what somebody wants. The caller stays on the thread until undo.
func slacken() (undo func()) {
	runtime.LockOSThread()
	has, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(has) != usualSlack {
		return runtime.UnlockOSThread
	}
	setSlack(slack)
	return func() {
		setSlack(usualSlack)
		runtime.UnlockOSThread()
	}
}

// Usual gives the calling thread the kernel's default timer slack, and so what is started from there: other programs are to
// run as they come. The caller has locked the thread.
func Usual() { setSlack(usualSlack) }

func setSlack(slack time.Duration) {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) // where that is forbidden all stays as it is
}
