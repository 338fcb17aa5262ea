package cluster

import (
	"os"
	"syscall"
	"time"
)

// removedStatus is the exit status of a node that is no member of its cluster any more.
const removedStatus = 3

// Exit is the end of a process that nobody asked for, or another end than was asked for.
type Exit struct {
	Node string    `json:"node"`
	Time time.Time `json:"time"`
	// Asked is what it was asked for when it ended; empty if it was to run.
	Asked string `json:"asked,omitempty"`
	// How is the exit status in words, Tail the end of its log.
	How  string `json:"how"`
	Tail string `json:"tail"`
}

// ending says how a process is to end, as words for what it was asked for.
type ending string

const (
	// notAtAll: it is to run, and is started again.
	notAtAll ending = ""
	// anyhow: its disks fail under it.
	anyhow ending = "loss of power"
	// byKill: by a signal that leaves it no choice. One that crashed right before is found by its
	// other status.
	byKill ending = "SIGKILL"
	// onRequest: by itself, and in order.
	onRequest ending = "SIGTERM"
	// whenRemoved: by itself, since it is no member of its cluster any more.
	whenRemoved ending = "removal"
)

// fits says whether a process ended as it was to. The state is nil if nothing is known.
func (e ending) fits(state *os.ProcessState) bool {
	if e == notAtAll || e == anyhow || state == nil {
		return e == anyhow
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return false
	case e == byKill:
		return status.Signaled() && status.Signal() == syscall.SIGKILL
	case e == onRequest:
		return status.Exited() && status.ExitStatus() == 0
	}
	return status.Exited() && status.ExitStatus() == removedStatus
}
