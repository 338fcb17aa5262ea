package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

const (
	// maxHosts is how many hosts a network of subnetBits has addresses for.
	maxHosts   = 254
	subnetBits = 24
)

// Network is a switch and the hosts around it. Its methods may be called at the same time.
type Network struct {
	subnet netip.Prefix
	seed   uint64
	home   *namespace // where the process itself lives
	held   *post
	stop   chan struct{}
	work   sync.WaitGroup // the reader of each host, and held.run

	mu     sync.Mutex
	closed bool
	hosts  []*Host
	wires  []*wire
	failed []error // why readers ended before Close
}

// New returns a network without hosts. Their addresses will be taken from subnet, an IPv4
// prefix of 24 bits; no other network of the machine sees them. The seed decides which
// packets get lost, delayed or doubled, for each direction by itself. The caller is outside of
// any Do and closes the network.
func New(subnet netip.Prefix, seed uint64) (*Network, error) {
	if !subnet.IsValid() || !subnet.Addr().Is4() || subnet.Bits() != subnetBits {
		return nil, fmt.Errorf("subnet %s is not an IPv4 prefix of %d bits", subnet, subnetBits)
	}
	home, err := currentNamespace()
	if err != nil {
		return nil, fmt.Errorf("make a network: %w", err)
	}
	n := &Network{subnet: subnet.Masked(), seed: seed, home: home, held: newPost(), stop: make(chan struct{})}
	n.work.Go(func() { n.held.run(n.stop) })
	return n, nil
}

// Add makes a host and gives it the next address of the subnet. Its links are perfect.
func (n *Network) Add(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, fmt.Errorf("add host %s: %w", name, ErrClosed)
	}
	if n.find(name) != nil {
		return nil, fmt.Errorf("add host %s: there is one already", name)
	}
	if len(n.hosts) == maxHosts {
		return nil, fmt.Errorf("add host %s: there are %d hosts already", name, maxHosts)
	}
	h, err := newHost(name, n.subnet, byte(len(n.hosts)+1), n.home)
	if err != nil {
		return nil, fmt.Errorf("add host %s: %w", name, err)
	}
	for _, other := range n.hosts {
		n.join(h, other)
		n.join(other, h)
	}
	n.hosts = append(n.hosts, h)
	n.work.Go(func() { n.read(h) })
	return h, nil
}

// join lays the wire from one host to another; n.mu is held.
func (n *Network) join(from, to *Host) {
	w := newWire(from, to, n.seed)
	n.wires = append(n.wires, w)
	from.wires[to.number].Store(w)
}

// read carries the packets that a host sends, until the device is stopped.
func (n *Network) read(h *Host) {
	buffer := make([]byte, maxPacket)
	for {
		size, err := h.device.read(buffer)
		if err != nil {
			n.readerEnded(h, err)
			return
		}
		if w := h.route(buffer[:size]); w != nil {
			w.carry(buffer[:size], n.held)
		}
	}
}

func (n *Network) readerEnded(h *Host, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.failed = append(n.failed, fmt.Errorf("read packets of host %s: %w", h.name, err))
	}
}

// SetLink changes one direction between two hosts. When it has returned, the packets that
// are sent follow the new link. An error says that a host is not there or the link makes no
// sense.
func (n *Network) SetLink(from, to string, link Link) error {
	if err := link.check(); err != nil {
		return fmt.Errorf("set the link from %s to %s: %w", from, to, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	i := slices.IndexFunc(n.wires, func(w *wire) bool { return w.from.name == from && w.to.name == to })
	if i < 0 {
		return fmt.Errorf("set the link from %s to %s: no such two hosts", from, to)
	}
	if link == (Link{}) {
		n.wires[i].link.Store(nil)
	} else {
		n.wires[i].link.Store(&link)
	}
	return nil
}

// Heal makes all links perfect. Packets that are under way keep their delays.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.wires {
		w.link.Store(nil)
	}
}

// Links returns the links that are not perfect.
func (n *Network) Links() map[Pair]Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	links := make(map[Pair]Link)
	for _, w := range n.wires {
		if link := w.link.Load(); link != nil {
			links[w.pair()] = *link
		}
	}
	return links
}

// Counters returns the counters of all directions. They are still there after Close.
func (n *Network) Counters() map[Pair]Counters {
	n.mu.Lock()
	defer n.mu.Unlock()
	counters := make(map[Pair]Counters, len(n.wires))
	for _, w := range n.wires {
		counters[w.pair()] = w.counters()
	}
	return counters
}

// Host returns the host of that name, nil if there is none.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.find(name)
}

func (n *Network) find(name string) *Host {
	i := slices.IndexFunc(n.hosts, func(h *Host) bool { return h.name == name })
	if i < 0 {
		return nil
	}
	return n.hosts[i]
}

// Close ends the switch and takes the devices away. A namespace goes with the last process
// and the last socket in it. An error says that packets of a host were no longer carried
// before Close, so that what was measured is void. Calls after the first do nothing.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	hosts, failed := n.hosts, n.failed
	n.mu.Unlock()

	close(n.stop)
	for _, h := range hosts {
		h.device.stop()
	}
	n.work.Wait() // so that nobody writes to a device that is closed
	for _, h := range hosts {
		h.device.close()
		h.namespace.close()
	}
	n.home.close()
	return errors.Join(failed...)
}
