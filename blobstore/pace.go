package blobstore

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/time/rate"
)

// paceBurstBytes is what may go at once after a rest. It has room for every run
// of cells.
const paceBurstBytes = 2 * maxReadBytes

// pace bounds the bytes a second that this node spends on repair, whatever it does
// at once, so that clients find the rest. Safe for concurrent use.
type pace struct {
	limiter *rate.Limiter
	// bytesPerSecond is asked for every time, since operators change it; 0 is
	// without a bound.
	bytesPerSecond func() uint64
}

func newPace(bytesPerSecond func() uint64) *pace {
	return &pace{limiter: rate.NewLimiter(rate.Inf, paceBurstBytes), bytesPerSecond: bytesPerSecond}
}

// wait returns when so many bytes may be spent, or ctx ends.
func (p *pace) wait(ctx context.Context, bytes int) error {
	limit := rate.Inf
	if wanted := p.bytesPerSecond(); wanted > 0 {
		limit = rate.Limit(wanted)
	}
	if p.limiter.Limit() != limit {
		p.limiter.SetLimit(limit)
	}
	for bytes > 0 {
		some := min(bytes, paceBurstBytes)
		if err := p.limiter.WaitN(ctx, some); err != nil {
			return fmt.Errorf("wait for repair's turn: %w", err)
		}
		bytes -= some
	}
	return nil
}

// pacedReader reads at a pace.
type pacedReader struct {
	ctx    context.Context
	pace   *pace
	source io.Reader
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.source.Read(b)
	if waitErr := p.pace.wait(p.ctx, n); waitErr != nil {
		return n, waitErr
	}
	return n, err
}
