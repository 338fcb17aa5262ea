package node

import (
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// maxScrapes bounds the scrapes at a time, each of which asks every part of the node.
	maxScrapes = 8
	// operationsTimeout bounds one request to the operations port, idleOperations the time
	// between two on one connection.
	operationsTimeout = 30 * time.Second
	idleOperations    = 2 * time.Minute
)

// newOperationsServer returns the server of the operations port.
func newOperationsServer(ready *readiness, metrics prometheus.Gatherer) *http.Server {
	return &http.Server{
		Handler: operationsHandler(ready, metrics), ReadHeaderTimeout: headerTimeout,
		ReadTimeout: operationsTimeout, WriteTimeout: operationsTimeout, IdleTimeout: idleOperations,
	}
}

// operationsHandler serves the probes and metrics. Nothing on it needs or
// gives rights: it tells names, addresses and folders of nodes, how much there is and how
// often what was done, but no names of repositories or accounts. Profiles, which show
// memory, are on the operator's socket only.
//
//	/livez        the process answers: one that meets an error that it can't survive ends
//	/readyz       the node can serve everything: for the balancer
//	/readyz/read  the node can serve reads by digest, which need no quorum
//	/metrics      Prometheus
func operationsHandler(ready *readiness, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", probe(func() error { return nil }))
	mux.HandleFunc("GET /readyz", probe(ready.forWrites))
	mux.HandleFunc("GET /readyz/read", probe(ready.forReads))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	return mux
}

func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte(err.Error() + "\n"))
			return
		}
		w.Write([]byte("ok\n"))
	}
}

// profiles serves Go's profiles. Only the operator's socket has them: they show
// memory.
func profiles(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}
