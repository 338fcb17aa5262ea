package gateway

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
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
	metrics limitMetrics

	mu       sync.Mutex // guards what follows
	failures *lru.Cache[throttleKey, *rate.Limiter]
	// trying is how many checks run. Each may fail, and so counts as if it had: else as
	// many passwords as there are connections could be tried before the first one is
	// found wrong.
	trying map[throttleKey]int
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
	return &throttle{failures: failures, trying: make(map[throttleKey]int), metrics: m}
}

// enter lets a check begin, or fails with errLoginThrottled and says how long to wait,
// if too many logins have failed lately. The caller must call leave once, and tell
// whether the login has failed.
func (t *throttle) enter(client netip.Addr, name string, now func() time.Time) (leave func(failed bool), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := throttleKeys(client, name)
	for i, key := range keys {
		left, perMinute := float64(throttleRates[i]), throttleRates[i]
		if bucket, found := t.failures.Get(key); found {
			left = bucket.TokensAt(now())
		}
		if left -= float64(t.trying[key]); left < 1 {
			t.metrics.refused.Inc()
			seconds := math.Ceil((1 - left) * 60 / float64(perMinute))
			return nil, refuseFor(errLoginThrottled, int(seconds), fmt.Sprintf("too many logins have failed, try again in %.0f s", seconds))
		}
	}
	for _, key := range keys {
		t.trying[key]++
	}
	return func(failed bool) { t.leave(keys, failed, now()) }, nil
}

// leave ends a check. One that failed takes a token from the name's and the address's
// bucket.
func (t *throttle) leave(keys [2]throttleKey, failed bool, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, key := range keys {
		if t.trying[key]--; t.trying[key] == 0 {
			delete(t.trying, key)
		}
		if !failed {
			continue
		}
		bucket, found := t.failures.Get(key)
		if !found {
			bucket = rate.NewLimiter(rate.Limit(throttleRates[i])/60, throttleRates[i])
			t.failures.Add(key, bucket)
		}
		bucket.AllowN(now, 1)
	}
}

// succeeded forgets what failed before under the name: whoever knows the password
// has mistyped it. The address's failures stay, since others may have caused them.
func (t *throttle) succeeded(client netip.Addr, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures.Remove(throttleKeys(client, name)[0])
}

// throttleRates are the failures per minute of what throttleKeys returns.
var throttleRates = [2]int{failuresPerMinute, addressFailuresPerMinute}

func throttleKeys(client netip.Addr, name string) [2]throttleKey {
	// As long as a name can be, so that nobody can fill the memory.
	name = name[:min(len(name), maxNameBytes)]
	prefix := clientPrefix(client)
	return [2]throttleKey{{prefix, "name " + name}, {client: prefix}}
}
