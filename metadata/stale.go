package metadata

import (
	"context"
	"sync/atomic"
)

// Stale says whether a read was answered by this node alone, since there was no
// quorum to ask: what it returned was true once. Content by digest may have been
// deleted since; tags and lists, which are only answered like that if
// StoreConfig.AvailableReads says so, may have changed.
type Stale struct{ happened atomic.Bool }

type staleKey struct{}

// WatchStale returns a context under which reads tell whether they were stale. Of
// two calls on one context the later one counts.
func WatchStale(ctx context.Context) (context.Context, *Stale) {
	s := &Stale{}
	return context.WithValue(ctx, staleKey{}, s), s
}

// Happened reports whether any read under the context was stale so far.
func (s *Stale) Happened() bool { return s.happened.Load() }

// NoteStale says that a read under the context is stale. Implementations of the
// Store's reads call it.
func NoteStale(ctx context.Context) {
	if s, watched := ctx.Value(staleKey{}).(*Stale); watched {
		s.happened.Store(true)
	}
}
