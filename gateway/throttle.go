package gateway

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// How many logins may fail before further ones have to wait. An account is never
// locked for everybody: that would let strangers lock others out.
const (
	// failuresPerMinute is for one name from one address.
	failuresPerMinute = 10
	// addressFailuresPerMinute is for all names from one address, which may be that of
	// a whole company: one program with a wrong password uses up a tenth of it.
	addressFailuresPerMinute = 100
	// maxThrottled is how many names and addresses are remembered, those that failed
	// last. It takes about 16 MB.
	maxThrottled = 1 << 16
)

// throttle makes those wait who try out passwords. Only checks that cost something
// are asked about: credentials that this node has found right before are let
// through, whatever others at the same address do.
type throttle struct {
	failures *lru.Cache[throttleKey, *rate.Limiter]
	metrics  limitMetrics
}

// throttleKey is an address with a name, or an address alone.
type throttleKey struct {
	client netip.Prefix
	name   string
}

func newThrottle(m limitMetrics) *throttle {
	failures, err := lru.New[throttleKey, *rate.Limiter](maxThrottled)
	if err != nil {
		panic(err) // Unreachable: it only fails for a size that is not positive.
	}
	return &throttle{failures: failures, metrics: m}
}

// check fails with errLoginThrottled, and says how long to wait, if too many logins
// have failed lately.
func (t *throttle) check(client netip.Addr, name string, now time.Time) error {
	for _, key := range throttleKeys(client, name) {
		bucket, found := t.failures.Get(key)
		if !found {
			continue
		}
		if left := bucket.TokensAt(now); left < 1 {
			t.metrics.refused.Inc()
			seconds := math.Ceil((1 - left) / float64(bucket.Limit()))
			return refuseFor(errLoginThrottled, max(1, int(seconds)), fmt.Sprintf("too many logins have failed, try again in %.0f s", seconds))
		}
	}
	return nil
}

// failed counts a login that failed.
func (t *throttle) failed(client netip.Addr, name string, now time.Time) {
	for i, key := range throttleKeys(client, name) {
		perMinute := failuresPerMinute
		if i == 1 {
			perMinute = addressFailuresPerMinute
		}
		fresh := rate.NewLimiter(rate.Limit(perMinute)/60, perMinute)
		bucket, found, _ := t.failures.PeekOrAdd(key, fresh)
		if !found {
			bucket = fresh
		}
		bucket.AllowN(now, 1)
	}
}

// succeeded forgets what failed before under the name: whoever knows the password
// has mistyped it. The address's failures stay, since others may have caused them.
func (t *throttle) succeeded(client netip.Addr, name string) {
	t.failures.Remove(throttleKeys(client, name)[0])
}

func throttleKeys(client netip.Addr, name string) [2]throttleKey {
	// As long as a name can be, so that nobody can fill the memory.
	name = name[:min(len(name), maxNameBytes)]
	prefix := clientPrefix(client)
	return [2]throttleKey{{prefix, "name " + name}, {client: prefix}}
}
