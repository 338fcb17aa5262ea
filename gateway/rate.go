package gateway

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

const (
	// maxRatedClients is how many clients' buckets are remembered. One that is
	// forgotten, since so many others came after it, begins with a full bucket. It
	// takes about 16 MB.
	maxRatedClients = 1 << 16
	// ipv6ClientBits is how much of an IPv6 address tells a client: whoever has one
	// address has at least all of its /64.
	ipv6ClientBits = 64
	// burstSeconds is how many seconds' worth of requests a client may send at once
	// unless the operator says otherwise: a pull is a burst by nature.
	burstSeconds = 10
)

// requestRate is a token bucket for each client address.
type requestRate struct {
	limit   rate.Limit
	burst   int
	clients *lru.Cache[netip.Prefix, *rate.Limiter]
	metrics limitMetrics
}

// newRequestRate returns the limit of requests per second and client; nil, which
// limits nothing, when perSecond is 0.
func newRequestRate(perSecond, burst int, m limitMetrics) *requestRate {
	if perSecond <= 0 {
		return nil
	}
	clients, err := lru.New[netip.Prefix, *rate.Limiter](maxRatedClients)
	if err != nil {
		panic(err) // Unreachable: it only fails for a size that is not positive.
	}
	if burst <= 0 {
		burst = burstSeconds * perSecond
	}
	return &requestRate{limit: rate.Limit(perSecond), burst: burst, clients: clients, metrics: m}
}

// take takes a token out of the client's bucket. If there is none it fails with
// errTooFast, and says when there will be one.
func (q *requestRate) take(client netip.Addr, now time.Time) error {
	bucket := q.bucket(client)
	if bucket.AllowN(now, 1) {
		return nil
	}
	q.metrics.refused.Inc()
	seconds := math.Ceil((1 - bucket.TokensAt(now)) / float64(q.limit))
	return refuseFor(errTooFast, max(1, int(seconds)), fmt.Sprintf("more than %v requests per second", float64(q.limit)))
}

func (q *requestRate) bucket(client netip.Addr) *rate.Limiter {
	key := clientPrefix(client)
	if bucket, found := q.clients.Get(key); found {
		return bucket
	}
	bucket := rate.NewLimiter(q.limit, q.burst)
	if before, found, _ := q.clients.PeekOrAdd(key, bucket); found {
		return before // Another request of the client was faster.
	}
	return bucket
}

// clientPrefix is what is taken for one client.
func clientPrefix(client netip.Addr) netip.Prefix {
	client = client.Unmap().WithZone("")
	bits := client.BitLen()
	if client.Is6() {
		bits = ipv6ClientBits
	}
	return netip.PrefixFrom(client, bits).Masked()
}

// checkRate refuses a request of a client that sends too many. Only what costs the
// client nothing to repeat is counted: no request with a body, since few clients
// can repeat those, and no step of an upload, since bytes sent before it would be
// lost. The question whether this is a registry is cheaper than the refusal, and
// balancers ask it to check a node's health.
func (g *gateway) checkRate(x *exchange) error {
	if g.requests == nil || !x.body.ended() || x.operation == opUpload || x.operation == opBase {
		return nil
	}
	return g.requests.take(x.origin.client, g.now())
}
