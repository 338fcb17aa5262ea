package gateway

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestClientLimit has one client use up its turns: it waits, others do not, and when
// all is over nothing is remembered.
func TestClientLimit(t *testing.T) {
	l := newClientLimit(2, time.Minute, newMetrics(nil, zerolog.Nop()).limit("client_requests"))
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	var leave []func()
	for range 2 {
		one, err := l.enter(t.Context(), here)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, one)
	}
	other, err := l.enter(t.Context(), there)
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	var entered atomic.Int64
	for range 3 {
		waiting.Go(func() {
			one, err := l.enter(ctx, here)
			if err == nil {
				entered.Add(1)
				one()
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	waits := func() int64 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.clients[clientPrefix(here)].turns.waiting.Load()
	}
	eventually(t, patience, func() bool { return waits() == 3 })
	if entered.Load() != 0 {
		t.Error("more than two run at once")
	}
	leave[0]()
	eventually(t, patience, func() bool { return entered.Load() == 3 })
	cancel()
	waiting.Wait()
	leave[1]()
	if len(l.clients) != 0 {
		t.Errorf("%d clients are remembered", len(l.clients))
	}
}

// TestClientLimitRefuses has requests of a client wait in vain.
func TestClientLimitRefuses(t *testing.T) {
	g := New(Config{RequestsPerClient: 1, LimitWait: time.Millisecond}, newMemoryMetadata(), newMemoryBlobs()).(*gateway)
	leave, err := g.clients.enter(t.Context(), netip.MustParseAddr("192.0.2.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{http.MethodGet, "/v2/a/tags/list", "", http.StatusTooManyRequests},
		{http.MethodPut, "/v2/a/manifests/v1", "{}", http.StatusServiceUnavailable},
		{http.MethodDelete, "/v2/a/blobs/uploads/upload-1", "", http.StatusServiceUnavailable},
		{http.MethodGet, "/v2/", "", http.StatusOK},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		if c.body == "" {
			r = httptest.NewRequest(c.method, c.path, nil)
		}
		r.RemoteAddr = "192.0.2.1:1"
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		if w.Code != c.want || (c.want != http.StatusOK) != (w.Header().Get("Retry-After") != "") {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
	leave()
	r := httptest.NewRequest(http.MethodGet, "/v2/a/tags/list", nil)
	r.RemoteAddr = "192.0.2.1:1"
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	if w.Code != http.StatusNotFound {
		t.Errorf("when the other one is over: %d", w.Code)
	}
}
