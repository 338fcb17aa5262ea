package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// metrics are what an operator sees of the gateway from outside.
type metrics struct {
	requests *prometheus.CounterVec   // by operation, method and status
	seconds  *prometheus.HistogramVec // by operation and method
	bytes    *prometheus.CounterVec   // of bodies, by direction
	inUse    *prometheus.GaugeVec     // by limit
	refused  *prometheus.CounterVec   // by limit
	pulls    *prometheus.CounterVec   // of blobs, by redirect decision
	logins   *prometheus.CounterVec   // by method and result
	// auditFailed counts lines that are not in the audit log.
	auditFailed prometheus.Counter
}

// limitMetrics are the metrics of one limiter.
type limitMetrics struct {
	inUse   prometheus.Gauge
	refused prometheus.Counter
}

// newMetrics makes the metrics and registers them, unless registerer is nil.
func newMetrics(registerer prometheus.Registerer, log zerolog.Logger) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atoll_gateway_requests_total", Help: "Requests answered on the registry port.",
		}, []string{"operation", "method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "atoll_gateway_request_seconds", Help: "Time from a request's header to the end of its reply.",
			// From a tag lookup to a large layer over a slow line.
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}, []string{"operation", "method"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atoll_gateway_body_bytes_total", Help: "Bytes of request bodies received and of reply bodies sent.",
		}, []string{"direction"}),
		inUse: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "atoll_gateway_limit_in_use", Help: "How much of a limit is in use.",
		}, []string{"limit"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atoll_gateway_limit_refused_total", Help: "Requests refused since a limit was reached.",
		}, []string{"limit"}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "atoll_gateway_redirect_decisions_total", Help: "GETs of blobs, by why they were redirected to another node or not.",
		}, []string{"decision"}),
	}
	m.logins = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "atoll_gateway_logins_total", Help: "Tokens given out, and passwords that were looked at.",
	}, []string{"method", "result"})
	m.auditFailed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "atoll_gateway_audit_failures_total", Help: "Records that could not be written to the audit log.",
	})
	if registerer == nil {
		return m
	}
	for _, collector := range []prometheus.Collector{m.requests, m.seconds, m.bytes, m.inUse, m.refused, m.pulls, m.logins, m.auditFailed} {
		if err := registerer.Register(collector); err != nil {
			log.Error().Err(err).Msg("metric not registered")
		}
	}
	return m
}

func (m *metrics) limit(name string) limitMetrics {
	return limitMetrics{inUse: m.inUse.WithLabelValues(name), refused: m.refused.WithLabelValues(name)}
}

// observe counts a request that is over. The method is one of the table's, or
// "other", so that no client can make up labels.
func (m *metrics) observe(x *exchange, status int, err error, took time.Duration) {
	method := x.methodLabel
	m.requests.WithLabelValues(x.operation.String(), method, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(x.operation.String(), method).Observe(took.Seconds())
	if x.auditEvent(status, err, false) == eventLogin {
		method := x.who.method
		if !x.who.presented {
			method = "unknown" // Nobody has shown who he is.
		}
		m.logins.WithLabelValues(string(method), auditResult(status, err)).Inc()
	}
	m.bytes.WithLabelValues("received").Add(float64(x.body.received))
	m.bytes.WithLabelValues("sent").Add(float64(x.w.written))
}
