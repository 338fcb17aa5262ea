package node

import (
	"net"

	"golang.org/x/sys/unix"

	"github.com/atollregistry/atoll/gateway"
)

const (
	// maxClientConnections is how many connections clients may have open, unless the
	// operator says otherwise.
	maxClientConnections = 16384
	// maxOperationsConnections is how many there may be to the operations port.
	maxOperationsConnections = 1024
	// fallbackFileLimit is taken for the process's limit of open files if it can't be
	// asked.
	fallbackFileLimit = 1024
)

// clientListener is the registry port, bounded.
func (p *parts) clientListener() net.Listener {
	limit := p.cfg.Limits.Connections
	if limit == 0 {
		limit = connectionLimit()
	}
	return gateway.NewListener(p.listeners.registry, gateway.ListenerConfig{
		MaxConnections: limit, PlainHTTP: p.cfg.Registry.PlainHTTP, Logger: p.component("gateway"), Metrics: p.metrics,
	})
}

// operationsListener is the operations port, bounded.
func (p *parts) operationsListener() net.Listener {
	return gateway.NewListener(p.listeners.operations, gateway.ListenerConfig{
		MaxConnections: maxOperationsConnections, PlainHTTP: true, Logger: p.component("operations"),
	})
}

// connectionLimit leaves half of the files that the process may open to shards, the log
// and the other nodes: whoever opens connections must not take those away.
func connectionLimit() int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		files.Cur = fallbackFileLimit
	}
	return int(min(files.Cur/2, maxClientConnections))
}
