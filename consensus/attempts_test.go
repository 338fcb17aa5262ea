package consensus

import (
	"errors"
	"testing"
	"time"
)

// However many ask for a node where another one answers, they ask no more often than one would; a node
// that is away, or there, is tried by each of them.
func TestAttempts(t *testing.T) {
	a, now := newAttempts(), time.Now()
	tried := func(steps int, outcome error) (times int) {
		for range steps {
			for range 10 { // callers
				if a.begin("n1", now) {
					times++
					a.end("n1", outcome, now)
				}
			}
			now = now.Add(dialInterval)
		}
		return times
	}
	if times := tried(20, errors.New("away")); times != 200 {
		t.Errorf("ten callers tried %d times in 20 intervals", times)
	}
	other := int(otherNodePause / dialInterval)
	if times := tried(3*other, errOtherNode); times != 3 {
		t.Errorf("another node was asked %d times in %s", times, 3*otherNodePause)
	}
	if !a.begin("n2", now) {
		t.Error("another node's attempts count for n2")
	}
	now = now.Add(otherNodePause)
	if times := tried(1, nil); times != 10 {
		t.Errorf("a node that answers was reached by %d of 10 callers", times)
	}
}
