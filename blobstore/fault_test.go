package blobstore

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"

	"github.com/atollregistry/atoll/proto"
)

// spoil puts the node's faults before its disk.
func (n *testNode) spoil(d *Disk) {
	space, write := d.calls.space, d.calls.write
	d.calls.space = func(dir string) (free, total uint64, err error) {
		if n.isFull() {
			return 0, 1 << 40, nil
		}
		return space(dir)
	}
	d.calls.write = func(f *os.File, pieces [][]byte) error {
		n.mu.Lock()
		hung := n.hung
		n.mu.Unlock()
		if hung != nil {
			<-hung
		}
		return write(f, pieces)
	}
}

func (n *testNode) isFull() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.full
}

func (n *testNode) setFull(full bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.full = full
}

// hang makes the disk's writes hang until release is called.
func (n *testNode) hang() (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hung = make(chan struct{})
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		close(n.hung)
		n.hung = nil
	}
}

// heal makes a node well again whatever was done to it.
func (n *testNode) heal() {
	n.thaw()
	n.setFull(false)
	n.kill()
	n.start()
	n.setSick(false)
	for _, other := range n.cluster.nodes {
		other.forgive()
		if other != n {
			other.waitConnected(n)
		}
	}
}

// waitConnected waits until a node can talk to another one again.
func (n *testNode) waitConnected(to *testNode) {
	n.cluster.t.Helper()
	run := shardRun{extentID: newExtentID(), layout: layout{data: 1, cell: 1, size: 1}, cells: 1}
	eventually(n.cluster.t, waitLimit, "connection is back", func() bool {
		err := n.store.readRun(context.Background(), to.id, run, make([]byte, 1))
		return errors.Is(err, ErrShardUnknown)
	})
}

// freeze lets no byte through to the node or from it, as if it was stopped.
func (n *testNode) freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen == nil {
		n.frozen = make(chan struct{})
	}
}

func (n *testNode) thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen != nil {
		close(n.frozen)
		n.frozen = nil
	}
}

func (n *testNode) setSick(sick bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sick = sick
}

func (n *testNode) setDraining(draining bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.draining = draining
}

// frozenConn is a connection that holds bytes back while its target is frozen.
type frozenConn struct {
	net.Conn
	target *testNode
	once   sync.Once
	closed chan struct{}
}

func (f *frozenConn) wait() {
	for {
		f.target.mu.Lock()
		frozen := f.target.frozen
		f.target.mu.Unlock()
		if frozen == nil {
			return
		}
		select {
		case <-frozen:
		case <-f.closed:
			return
		}
	}
}

func (f *frozenConn) Write(p []byte) (int, error) {
	f.wait()
	return f.Conn.Write(p)
}

func (f *frozenConn) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.wait()
	return n, err
}

func (f *frozenConn) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

// damage makes a shard unusable in one of several ways.
func (c *testCluster) damage(e *proto.Extent, number int, random *rand.Rand) {
	c.t.Helper()
	if e.GetHolders()[number] == "" {
		return
	}
	path := c.shardPath(e, number)
	c.node(e.GetHolders()[number]).store.disks.all[0].handles.forgetAll()
	var err error
	switch random.IntN(4) {
	case 0:
		err = os.Remove(path)
	case 1:
		info, statErr := os.Stat(path)
		err = errors.Join(statErr, os.Truncate(path, info.Size()/2))
	default: // Flips a bit of every cell.
		l, layoutErr := extentLayout(e)
		file, readErr := os.ReadFile(path)
		if err = errors.Join(layoutErr, readErr); err != nil {
			break
		}
		for stripe := range l.stripes() {
			file[int(l.cellOffset(stripe))+random.IntN(l.cellBytes(stripe))] ^= 1 << random.IntN(8)
		}
		err = os.WriteFile(path, file, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// gateReader returns its bytes up to gate, then calls reached once, and goes on.
type gateReader struct {
	content []byte
	at      int
	gate    int
	reached func()
}

func (g *gateReader) Read(p []byte) (int, error) {
	if g.at >= g.gate && g.reached != nil {
		g.reached()
		g.reached = nil
	}
	if g.at == len(g.content) {
		return 0, io.EOF
	}
	end := len(g.content)
	if g.at < g.gate {
		end = g.gate
	}
	n := copy(p, g.content[g.at:end])
	g.at += n
	return n, nil
}
