package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
)

// Offsets in a packet that a device hands over: its own header, then one of IPv4.
const (
	versionOffset     = deviceHeader
	destinationOffset = deviceHeader + 16
	minPacket         = deviceHeader + 20
)

// Host is a network namespace with one address. Its methods may be called at the same time.
type Host struct {
	name      string
	address   netip.Addr
	number    byte // the last byte of the address
	prefix    [3]byte
	namespace *namespace
	device    *device
	wires     [256]atomic.Pointer[wire] // by the number of the destination
}

func newHost(name string, subnet netip.Prefix, number byte, home *namespace) (*Host, error) {
	bytes := subnet.Addr().As4()
	h := &Host{name: name, number: number, prefix: [3]byte(bytes[:3])}
	bytes[3] = number
	h.address = netip.AddrFrom4(bytes)
	var err error
	h.namespace, err = home.child(func() error {
		var err error
		h.device, err = newDevice(netip.PrefixFrom(h.address, subnet.Bits()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Name returns the name of the host.
func (h *Host) Name() string { return h.name }

// Address returns the address of the host.
func (h *Host) Address() netip.Addr { return h.address }

// route finds the wire to the destination of a packet, nil if it is not for another host.
func (h *Host) route(packet []byte) *wire {
	if len(packet) < minPacket || packet[versionOffset]>>4 != 4 {
		return nil // IPv6 looks for routers
	}
	if [3]byte(packet[destinationOffset:]) != h.prefix {
		return nil
	}
	return h.wires[packet[destinationOffset+3]].Load()
}

// Do calls f on a thread that is in the namespace of the host: sockets that f makes and
// processes that it starts are there, goroutines that it starts are not. Do returns the error
// of f, or one that says that the host could not be entered and f was not called. It may be
// called many times at once; each call takes a thread for as long as f runs.
func (h *Host) Do(f func() error) error {
	called := false
	err := h.namespace.do(func() error {
		called = true
		return f()
	})
	if err != nil && !called {
		return fmt.Errorf("enter host %s: %w", h.name, err)
	}
	return err
}

// DialContext connects from the host to an address, whose host part is an IP address, not a
// name. It is meant for http.Transport. Only the making of the socket takes a thread, so
// connections may hang by the thousand.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from host %s: no names here: %w", h.name, err)
	}
	dialer := net.Dialer{Control: h.namespace.adopt}
	return dialer.DialContext(ctx, network, address)
}

// Listen listens on an address of the host, of a stream network such as "tcp".
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := h.Do(func() error {
		var config net.ListenConfig
		var err error
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	return listener, err
}
