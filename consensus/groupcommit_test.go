package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// slowLog answers for an entry when the test says so.
type slowLog struct {
	mu      sync.Mutex
	entries []string
	pending []*slowFuture
	came    chan struct{}
}

type slowFuture struct {
	raft.ApplyFuture
	answered chan struct{}
}

func (f *slowFuture) Error() error { <-f.answered; return nil }

func (l *slowLog) append(data []byte, _ time.Duration) raft.ApplyFuture {
	l.mu.Lock()
	defer l.mu.Unlock()
	future := &slowFuture{answered: make(chan struct{})}
	l.entries, l.pending = append(l.entries, string(data)), append(l.pending, future)
	l.came <- struct{}{}
	return future
}

// answer answers for all that is pending, and returns what that was.
func (l *slowLog) answer() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, future := range l.pending {
		close(future.answered)
	}
	entries := l.entries
	l.entries, l.pending = nil, nil
	return entries
}

func newSlowLog(patience time.Duration) (*slowLog, *groupCommit) {
	log := &slowLog{came: make(chan struct{}, 10000)}
	return log, &groupCommit{append: log.append, patience: patience, enough: 1}
}

// waitFor takes n values.
func waitFor(t *testing.T, n int, c <-chan struct{}) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for i := range n {
		select {
		case <-c:
		case <-deadline:
			t.Fatalf("%d of %d came", i, n)
		}
	}
}

// What comes while a group is under way goes into the log together, in its order.
func TestGroupCommit(t *testing.T) {
	log, g := newSlowLog(time.Hour)
	answered := make(chan struct{}, 10)
	add := func(name string) {
		g.add(&entrant{ctx: context.Background(), data: []byte(name), answered: func(raft.ApplyFuture) { answered <- struct{}{} }})
	}
	add("first")
	waitFor(t, 1, log.came)
	for i := range 5 {
		add(fmt.Sprint(i))
	}
	if got := fmt.Sprint(log.answer()); got != "[first]" {
		t.Errorf("appended %s before the first was answered", got)
	}
	waitFor(t, 5, log.came)
	if got := fmt.Sprint(log.answer()); got != "[0 1 2 3 4]" {
		t.Errorf("appended %s", got)
	}
	waitFor(t, 6, answered)
}

// Few entries go at once.
func TestGroupCommitOfFew(t *testing.T) {
	log, g := newSlowLog(time.Hour)
	g.enough = 3
	answered := make(chan struct{}, 10)
	for range 5 {
		g.add(&entrant{ctx: context.Background(), answered: func(raft.ApplyFuture) { answered <- struct{}{} }})
	}
	waitFor(t, 3, log.came)
	if waiting := len(g.waiting); waiting != 2 {
		t.Errorf("%d wait for the first three", waiting)
	}
	log.answer()
	waitFor(t, 2, log.came)
	log.answer()
	waitFor(t, 5, answered)
}

// A group is no larger than what Raft appends at once, and who waits no more is told that nothing was appended.
func TestGroupCommitLeavesOut(t *testing.T) {
	log, g := newSlowLog(time.Hour)
	gone, leave := context.WithCancel(context.Background())
	answers := make(chan error, 2*maxAppendEntries)
	add := func(ctx context.Context) {
		g.add(&entrant{ctx: ctx, answered: func(f raft.ApplyFuture) { answers <- f.Error() }})
	}
	add(context.Background())
	waitFor(t, 1, log.came)
	add(gone)
	for range maxAppendEntries {
		add(context.Background())
	}
	leave()
	log.answer()
	waitFor(t, maxAppendEntries-1, log.came)
	log.answer()
	waitFor(t, 1, log.came)
	log.answer()
	for i := range maxAppendEntries + 2 {
		err := <-answers
		if (i == 1) != (err != nil) || err != nil && !errors.Is(appendError(err), ErrNotLeader) {
			t.Errorf("answer %d is %v", i, err)
		}
	}
}

// A group that is not answered holds up the others for a while only.
func TestGroupCommitOvertakes(t *testing.T) {
	log, g := newSlowLog(time.Millisecond)
	answered := make(chan struct{}, 10)
	for range 5 {
		g.add(&entrant{ctx: context.Background(), answered: func(raft.ApplyFuture) { answered <- struct{}{} }})
		waitFor(t, 1, log.came) // though none before it was answered
	}
	log.answer()
	waitFor(t, 5, answered)
}

// Whatever overtakes what, each entry is appended once and answered once, and
// nothing is left waited for.
func TestGroupCommitUnderLoad(t *testing.T) {
	log, g := newSlowLog(time.Millisecond)
	stop := make(chan struct{})
	var answering, adding sync.WaitGroup
	answering.Go(func() {
		for pause := time.Duration(0); ; pause = (pause + 700*time.Microsecond) % (3 * time.Millisecond) {
			select {
			case <-stop:
				return
			case <-time.After(pause):
				log.answer()
			}
		}
	})
	const workers, each = 100, 20
	var answers atomic.Int64
	for range workers {
		adding.Go(func() {
			for range each {
				answered := make(chan struct{}, 1)
				g.add(&entrant{ctx: context.Background(), answered: func(raft.ApplyFuture) {
					answers.Add(1)
					answered <- struct{}{}
				}})
				select {
				case <-answered:
				case <-time.After(10 * time.Second):
					t.Error("an entry was never answered")
					return
				}
			}
		})
	}
	adding.Wait()
	close(stop)
	answering.Wait()
	if appended := len(log.came); appended != workers*each || answers.Load() != workers*each {
		t.Errorf("of %d entries %d were appended, and %d answered", workers*each, appended, answers.Load())
	}
	deadline := time.Now().Add(10 * time.Second)
	for g.busy() {
		if time.Now().After(deadline) {
			t.Fatal("a group is never over")
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *groupCommit) busy() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.underway > 0 || len(g.waiting) > 0
}
