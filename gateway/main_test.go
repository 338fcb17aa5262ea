package gateway

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollregistry/atoll/gateway/acmetest"
)

// TestMain looks for goroutines that are left over, those of the certificate authority
// aside.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction(acmetest.Goroutine))
}

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// eventually waits until a condition holds.
func eventually(t *testing.T, deadline time.Duration, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	over := time.After(deadline)
	for !condition() {
		select {
		case <-over:
			t.Fatal("the condition did not come true in time")
		case <-ticker.C:
		}
	}
}
