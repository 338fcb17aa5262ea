package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// guess tries a password from one address, as a client that may be gone by then.
func (s *authServer) guess(ctx context.Context, name, password string) int {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v2/", nil)
	r.RemoteAddr = "192.0.2.9:1"
	r.SetBasicAuth(name, password)
	w := httptest.NewRecorder()
	defer func() {
		if value := recover(); value != nil && value != http.ErrAbortHandler {
			panic(value)
		}
	}()
	s.gateway.ServeHTTP(w, r)
	return w.Code
}

// TestGuessesOfOneMomentCount tries out many passwords before the first one is found
// wrong.
func TestGuessesOfOneMomentCount(t *testing.T) {
	s := startAuth(t)
	var hashed, refused atomic.Int64
	release := make(chan struct{})
	s.gateway.auth.hasher.check = func([]byte, string) bool {
		hashed.Add(1)
		<-release
		return false
	}
	const guesses = 4 * failuresPerMinute
	var running sync.WaitGroup
	for i := range guesses {
		running.Go(func() {
			if s.guess(t.Context(), "alice", fmt.Sprint("guess ", i)) == http.StatusTooManyRequests {
				refused.Add(1)
			}
		})
	}
	eventually(t, patience, func() bool { return refused.Load() == guesses-failuresPerMinute })
	close(release)
	running.Wait()
	if n := hashed.Load(); n != failuresPerMinute {
		t.Errorf("%d guesses were looked at", n)
	}
	if got := s.guess(t.Context(), "alice", "one more"); got != http.StatusTooManyRequests {
		t.Errorf("one more: %d", got)
	}
}

// TestGuessesOfTheGoneCount tries out passwords without waiting for the answer: that a
// right one is remembered would tell it later.
func TestGuessesOfTheGoneCount(t *testing.T) {
	s := startAuth(t)
	count := s.countHashes()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 4 * failuresPerMinute {
		s.guess(gone, "alice", fmt.Sprint("guess ", i))
	}
	// They run on when the clients are gone, in any order: the right one would be one of the
	// few that are looked at, by chance.
	eventually(t, patience, func() bool { return s.guess(t.Context(), "alice", "wrong") == http.StatusTooManyRequests })
	s.guess(gone, "alice", "password of alice")
	if got := s.guess(t.Context(), "alice", "password of alice"); got != http.StatusTooManyRequests {
		t.Errorf("what the guesses have found: %d", got)
	}
	if n := count.Load(); n > failuresPerMinute {
		t.Errorf("%d guesses were looked at", n)
	}
}

// TestParallelLoginsAreOne has many logins with the right password run at once: a
// client that pulls many layers does not guess.
func TestParallelLoginsAreOne(t *testing.T) {
	s := startAuth(t)
	release := make(chan struct{})
	s.gateway.auth.hasher.check = func(hash []byte, password string) bool {
		<-release
		return checkPassword(hash, password)
	}
	const logins = 4 * failuresPerMinute
	var right, arrived atomic.Int64
	var running sync.WaitGroup
	for range logins {
		running.Go(func() {
			arrived.Add(1)
			if s.guess(t.Context(), "alice", "password of alice") == http.StatusOK {
				right.Add(1)
			}
		})
	}
	eventually(t, patience, func() bool { return arrived.Load() == logins })
	close(release)
	running.Wait()
	if right.Load() != logins {
		t.Errorf("%d of %d were let in", right.Load(), logins)
	}
}
