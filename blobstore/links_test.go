package blobstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/proto"
)

// dialerCluster is one node that is reached by a function.
type dialerCluster struct {
	Cluster
	dial func(ctx context.Context) (net.Conn, error)
}

func (d dialerCluster) ClusterID() string { return "" }

func (d dialerCluster) Dial(ctx context.Context, _ string) (net.Conn, error) { return d.dial(ctx) }

// TestFewDialsAtOnce: a node breaks connections of a host that opens too many at once.
func TestFewDialsAtOnce(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	shard := newShardContent(t, 1, 16, 40)
	if _, err := shard.write(s.disk); err != nil {
		t.Fatal(err)
	}
	var now, most atomic.Int64
	links := newLinks(dialerCluster{dial: func(ctx context.Context) (net.Conn, error) {
		defer now.Add(-1)
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", s.address)
	}})
	defer links.close()
	var calls sync.WaitGroup
	for range 300 {
		calls.Go(func() {
			if err := shard.checkRemote(testContext(t), links, 0, 3); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if most.Load() > maxDials {
		t.Errorf("%d links were opened at once, at most %d may be", most.Load(), maxDials)
	}
}

// TestUnreachableNodeIsToBlame: also when it is the dial's own time that is over; but not when the caller's is.
func TestUnreachableNodeIsToBlame(t *testing.T) {
	cause, dials := fmt.Errorf("handshake: %w", context.DeadlineExceeded), 0
	links := newLinks(dialerCluster{dial: func(ctx context.Context) (net.Conn, error) {
		if dials++; dials == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, cause
	}})
	defer links.close()
	call := func(ctx context.Context) error {
		_, err := links.call(ctx, "away", &proto.ShardCall{Read: &proto.ReadShardRequest{}})
		return err
	}
	cancelled, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := call(cancelled); !errors.Is(err, context.DeadlineExceeded) || isNodeFault(err) {
		t.Errorf("the caller's time is over: %v", err)
	}
	for range 3 {
		if err := call(t.Context()); status.Code(err) != codes.Unavailable || !isNodeFault(err) {
			t.Errorf("the node does not answer: %v", err)
		}
		links.prolong(t, "away")
	}
	if dials != 2 {
		t.Errorf("%d dials, want 2: one more has failed a moment ago", dials)
	}
}

// prolong has a node not tried again until the test is over, however slow the machine is.
func (p *links) prolong(t *testing.T, node string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	failure, ok := p.failed[node]
	if !ok || time.Until(failure.until) > time.Hour+dialPauseMost {
		t.Errorf("the failure is noted: %v, until %s", ok, failure.until)
	}
	failure.until = time.Now().Add(time.Hour)
	p.failed[node] = failure
}

// TestIdleLinksAreClosed: also when no call comes any more.
func TestIdleLinksAreClosed(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	links := s.connect(t)
	shard := newShardContent(t, 1, 16, 40)
	if _, err := send(t, links, testServerID, shard.header, shard.messages(16)...); err != nil {
		t.Fatal(err)
	}
	links.idle[testServerID][0].used = time.Now().Add(-2 * linkIdle)
	if !links.sweep.Reset(0) {
		t.Error("nothing would have looked at it")
	}
	waitFor(t, "the link to go", func() bool {
		s.links.mu.Lock()
		defer s.links.mu.Unlock()
		return len(s.links.conns) == 0
	})
}

// TestStoppedWriter: a writer that says nothing for long, as one does whose process was stopped, keeps no place, wherever it has got.
func TestStoppedWriter(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	s.server.writerTimeout = 300 * time.Millisecond
	links := s.connect(t)
	shard := newShardContent(t, 1, 16, 40)
	for name, begin := range map[string]func(l *link) error{
		"before the first message": func(*link) error { return nil },
		"between messages":         func(l *link) error { return l.send(nil, shard.data[:10]) },
		"in a message": func(l *link) error {
			_, err := l.conn.Write([]byte{0, 0, 0, 0, 0, 0, 0, 40, 1})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			call, err := links.call(testContext(t), testServerID, &proto.ShardCall{Write: shard.header})
			if err != nil {
				t.Fatal(err)
			}
			defer call.abort()
			if err := begin(call.link.link); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "its place", func() bool { return len(s.disk.writers) == 0 })
			if _, unfinished := diskFiles(t, s.disk); len(unfinished) > 0 {
				t.Errorf("left behind: %v", unfinished)
			}
		})
	}
}

// TestPatientWriter: one that says now and then that it is there keeps its place.
func TestPatientWriter(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	s.server.writerTimeout = 4 * time.Second
	links := s.connect(t)
	shard := newShardContent(t, 1, 16, 40)
	call, err := links.call(testContext(t), testServerID, &proto.ShardCall{Write: shard.header})
	if err != nil {
		t.Fatal(err)
	}
	sink := &peerSink{call: call, answered: make(chan struct{})}
	go sink.await()
	defer sink.close()
	for began := time.Now(); time.Since(began) < 2*s.server.writerTimeout; {
		if err := sink.beat(); err != nil {
			t.Fatal(err)
		}
		<-time.After(s.server.writerTimeout / 40)
	}
	if err := errors.Join(sink.send(nil, shard.data), sink.commit(shard.trailer())); err != nil {
		t.Error(err)
	}
}
