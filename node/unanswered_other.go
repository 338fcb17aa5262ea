//go:build !linux

package node

import (
	"net"
	"time"
)

// boundUnanswered leaves it to the kernel's own bound, which is minutes.
func boundUnanswered(*net.TCPConn, time.Duration) error { return nil }
