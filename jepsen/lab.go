package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/netlab"
)

// clientHost is the host that requests come from.
const clientHost = "client"

// labSubnet is where the hosts of a run are. Nobody else sees it.
var labSubnet = netip.MustParsePrefix("10.77.0.0/24")

// lab is where a run takes place.
type lab struct {
	// network is nil on loopback, where lock keeps others away.
	network *netlab.Network
	lock    *os.File
	client  cluster.Host
	host    func(name string) (cluster.Host, error)
}

// netHost is a host of the network as the cluster wants it.
type netHost struct{ *netlab.Host }

// Address implements cluster.Host.
func (h netHost) Address() string { return h.Host.Address().String() }

// DialContext implements cluster.Host.
func (h netHost) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return h.Host.DialContext(ctx, network, address)
}

func newLab(o *options) (*lab, error) {
	if o.loopback {
		return newLoopbackLab()
	}
	network, err := netlab.New(labSubnet, o.seed)
	if err != nil {
		return nil, fmt.Errorf("%w (with --loopback it goes without, and without most nemeses)", err)
	}
	l := &lab{network: network, host: func(name string) (cluster.Host, error) {
		host, err := network.Add(name)
		return netHost{host}, err
	}}
	l.client, err = l.host(clientHost)
	return l, err
}

func newLoopbackLab() (*lab, error) {
	lock, err := lockLoopback()
	if err != nil {
		return nil, err
	}
	number := 1
	client, err := cluster.LoopbackHost(number)
	return &lab{lock: lock, client: client, host: func(string) (cluster.Host, error) {
		number++
		return cluster.LoopbackHost(number)
	}}, err
}

func (l *lab) close() error {
	if l.network == nil {
		return l.lock.Close()
	}
	return l.network.Close()
}
