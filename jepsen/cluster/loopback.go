package cluster

import (
	"context"
	"fmt"
	"net"
)

// Loopback is a host that is only an address of this machine. Its network can't be cut.
type Loopback string

// LoopbackHost returns the host with a number from 1 to 250, on a network of the
// loopback range that no default uses.
func LoopbackHost(number int) (Loopback, error) {
	if number < 1 || number > 250 {
		return "", fmt.Errorf("host %d is not 1 to 250", number)
	}
	return Loopback(fmt.Sprintf("127.77.0.%d", number)), nil
}

// Address implements Host.
func (l Loopback) Address() string { return string(l) }

// Do implements Host.
func (l Loopback) Do(f func() error) error { return f() }

// DialContext implements Host.
func (l Loopback) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(string(l))}}
	return dialer.DialContext(ctx, network, address)
}
