package nodetest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/atollregistry/atoll/node"
)

// links are the connections between the members. A link is cut in both
// directions at once: new connections are refused and those that exist break.
type links struct {
	// received counts the bytes that members got by connections that they opened.
	received atomic.Int64

	mu    sync.Mutex // guards cut and open
	cut   map[[2]string]bool
	conns map[*linkConn]struct{}
}

var errCut = errors.New("link is cut by the test")

type linkConn struct {
	net.Conn
	links *links
	ends  [2]string
}

// Read counts what is read.
func (c *linkConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.links.received.Add(int64(n))
	return n, err
}

// Close forgets the connection and closes it.
func (c *linkConn) Close() error {
	c.links.mu.Lock()
	delete(c.links.conns, c)
	c.links.mu.Unlock()
	return c.Conn.Close()
}

func (l *links) dialer(from *Member) node.Dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ends := [2]string{from.Config.Cluster.Address, address}
		if l.isCut(ends) {
			return nil, errCut
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		link := &linkConn{Conn: conn, links: l, ends: ends}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.cut[ends] {
			conn.Close()
			return nil, errCut
		}
		if l.conns == nil {
			l.conns = make(map[*linkConn]struct{})
		}
		l.conns[link] = struct{}{}
		return link, nil
	}
}

func (l *links) isCut(ends [2]string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut[ends]
}

func (l *links) set(a, b *Member, cut bool) {
	l.mu.Lock()
	if l.cut == nil {
		l.cut = make(map[[2]string]bool)
	}
	var broken []*linkConn
	for _, ends := range [][2]string{
		{a.Config.Cluster.Address, b.Config.Cluster.Address},
		{b.Config.Cluster.Address, a.Config.Cluster.Address},
	} {
		l.cut[ends] = cut
		for conn := range l.conns {
			if cut && conn.ends == ends {
				broken = append(broken, conn)
			}
		}
	}
	l.mu.Unlock()
	for _, conn := range broken {
		_ = conn.Close() // it is broken on purpose
	}
}

// Cut breaks the link between two members until Heal.
func (c *Cluster) Cut(a, b *Member) { c.links.set(a, b, true) }

// Heal restores the link between two members.
func (c *Cluster) Heal(a, b *Member) { c.links.set(a, b, false) }

// Isolate cuts a member off from all others.
func (c *Cluster) Isolate(m *Member) { c.others(m, c.Cut) }

// Rejoin heals all links of a member.
func (c *Cluster) Rejoin(m *Member) { c.others(m, c.Heal) }

func (c *Cluster) others(m *Member, do func(a, b *Member)) {
	for _, other := range c.Members {
		if other != m {
			do(m, other)
		}
	}
}

// ShardFiles lists the shard files of a member.
func (m *Member) ShardFiles() []string {
	m.cluster.t.Helper()
	var files []string
	for _, folder := range m.Config.Data {
		root := filepath.Join(folder, "shards")
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && entry.Name() == "tmp":
				return filepath.SkipDir
			case !entry.IsDir() && filepath.Dir(path) != root:
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			m.cluster.t.Fatal(err)
		}
	}
	return files
}

// FlipBit flips one bit in the middle of a file, as a rotten disk would.
func FlipBit(t testing.TB, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := file.ReadAt(b[:], info.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := file.WriteAt(b[:], info.Size()/2); err != nil {
		t.Fatal(err)
	}
}
