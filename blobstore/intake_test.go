package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"
)

// pausingReader gives the first bytes of content, and the rest once it is released.
type pausingReader struct {
	first, rest io.Reader
	release     <-chan struct{}
	paused      func() // called once, when the first bytes are gone
	once        sync.Once
}

func (p *pausingReader) Read(b []byte) (int, error) {
	if n, err := p.first.Read(b); err == nil {
		return n, nil
	}
	p.once.Do(p.paused)
	<-p.release
	return p.rest.Read(b)
}

// TestSlowClientsStarveNobody: more clients than there is memory for send a little
// and then nothing. Others push meanwhile, and what the slow ones send in the end is
// stored as it should be.
func TestSlowClientsStarveNobody(t *testing.T) {
	// With 10 nodes that is twice as many as there are stripes.
	const clients, first = 128, 200 << 10
	for _, nodes := range []int{3, 10} {
		t.Run(fmt.Sprintf("nodes=%d", nodes), func(t *testing.T) {
			c := startCluster(t, nodes, productionSizes)
			n := c.nodes[0]
			n.store.patience = 10 * time.Millisecond
			release := make(chan struct{})
			content := randomBytes(first+100_000, 1)
			var slow sync.WaitGroup
			begun := make(chan struct{}, clients)
			for range clients {
				slow.Go(func() {
					source := &pausingReader{
						first: bytes.NewReader(content[:first]), rest: bytes.NewReader(content[first:]),
						release: release, paused: func() { begun <- struct{}{} },
					}
					to, _, err := n.appendAll(Progress{}, source)
					if err != nil {
						t.Errorf("slow client: %v", err)
						return
					}
					if digest, err := to.Digest("sha256"); digest != sha256Digest(content) || err != nil {
						t.Errorf("slow client: digest %s, %v", digest, err)
					}
				})
			}
			for i := range clients {
				select {
				case <-begun:
				case <-time.After(waitLimit):
					t.Errorf("client %d of %d finds no memory to begin with", i, clients)
				}
				if t.Failed() {
					break
				}
			}
			for _, size := range []int{16, 1 << 20} {
				if _, _, err := n.appendAll(Progress{}, bytes.NewReader(content[:min(size, len(content))])); err != nil {
					t.Errorf("push of %d bytes by a fast client: %v", size, err)
				}
			}
			close(release)
			slow.Wait()
		})
	}
}

// TestMemoryForSmallBlobs: a blob that has come whole takes no more memory than it
// has bytes, and an append waits for memory only so long.
func TestMemoryForSmallBlobs(t *testing.T) {
	c := startCluster(t, 3, productionSizes)
	n := c.nodes[0]
	n.store.memoryWait = 50 * time.Millisecond
	held, err := n.store.buffers.acquire(context.Background(), int(n.cfg.BufferBytes)-bufferStepBytes)
	if err != nil {
		t.Fatal(err)
	}
	n.checkPull(n.push(16, 1))
	_, _, err = n.appendAll(Progress{}, bytes.NewReader(randomBytes(1<<20, 1)))
	if !errors.Is(err, ErrBusy) {
		t.Errorf("without memory: got %v, want ErrBusy", err)
	}
	held.release()
	n.checkPull(n.push(1<<20, 1))
}
