package main

import (
	"fmt"
	"net"
	"strconv"
)

const (
	host = "127.0.0.1"
	// Ports are looked for below those that Linux gives to connections on their way out, since a
	// server that is started anew needs its own again.
	firstPort, lastPort = 20_000, 32_000
)

// freeAddresses returns so many addresses, HOST:PORT, at which nothing listens now.
func freeAddresses(n int) (addresses []string, err error) {
	for port := firstPort; port <= lastPort && len(addresses) < n; port++ {
		address := net.JoinHostPort(host, strconv.Itoa(port))
		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue // somebody else's
		}
		defer listener.Close() // not before all are found, so that each is another one
		addresses = append(addresses, address)
	}
	if len(addresses) < n {
		return nil, fmt.Errorf("%d ports from %d to %d are free, %d are needed: stop what uses them", len(addresses), firstPort, lastPort, n)
	}
	return addresses, nil
}
