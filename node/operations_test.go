package node

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestOperationsPort: it has probes and metrics, for reading, and nothing else: above all
// neither profiles, which show memory, nor what the operator's socket has.
func TestOperationsPort(t *testing.T) {
	server := newOperationsServer(&readiness{}, prometheus.NewRegistry())
	if server.ReadTimeout <= 0 || server.WriteTimeout <= 0 || server.IdleTimeout <= 0 || server.ReadHeaderTimeout <= 0 {
		t.Error("a client can hold a connection for ever")
	}
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/livez", http.StatusOK}, {"HEAD", "/livez", http.StatusOK}, {"GET", "/readyz", http.StatusServiceUnavailable},
		{"GET", "/metrics", http.StatusOK}, {"POST", "/metrics", http.StatusMethodNotAllowed}, {"DELETE", "/livez", http.StatusMethodNotAllowed},
		{"GET", "/", http.StatusNotFound}, {"GET", "/debug/pprof/", http.StatusNotFound}, {"GET", "/debug/pprof/heap", http.StatusNotFound},
		{"GET", "/debug/vars", http.StatusNotFound}, {"GET", "/status", http.StatusNotFound}, {"GET", "/backup", http.StatusNotFound},
		{"POST", "/collect", http.StatusNotFound}, {"POST", "/drain", http.StatusNotFound}, {"GET", "/v2/", http.StatusNotFound},
		{"GET", "/accounts", http.StatusNotFound}, {"GET", "/metrics/../debug/pprof/", http.StatusTemporaryRedirect},
	} {
		w := httptest.NewRecorder()
		server.Handler.ServeHTTP(w, httptest.NewRequest(test.method, test.path, nil))
		if w.Code != test.status && (w.Code != http.StatusMovedPermanently || test.status != http.StatusTemporaryRedirect) {
			t.Errorf("%s %s: got %d, want %d", test.method, test.path, w.Code, test.status)
		}
	}
}
