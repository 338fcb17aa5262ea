package node

import (
	"context"
	"time"
)

// stateVerifyInterval is the time between two readings of the whole state, which find what has
// rotted since the node was started. It takes about 0.1 s of one core for 100,000 tags.
const stateVerifyInterval = time.Hour

// verifyState reads the whole state from time to time, until ctx ends. The state machine itself ends the
// node when it finds that it is damaged.
func (p *parts) verifyState(ctx context.Context) error {
	ticker := time.NewTicker(stateVerifyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := p.machine.Verify(); err != nil {
			return err
		}
	}
}
