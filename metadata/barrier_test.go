package metadata

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A request that looks at rights, an account, a tag and a manifest asks the cluster
// once; without a barrier, each look does.
func TestReadsOfOneRequestShareOneRound(t *testing.T) {
	t.Parallel()
	s, log := troubledStore(t, StoreConfig{})
	local := NewStore(log.machine, &log.localLog, StoreConfig{})
	if err := local.PutManifest(t.Context(), putOf("app", "m1", "v1")); err != nil {
		t.Fatal(err)
	}
	request := func(ctx context.Context) (rounds int) {
		log.reads = 0
		for _, read := range []func() error{
			func() error { return s.CatchUpForContent(ctx) },
			func() error { return s.CatchUp(ctx) },
			func() error { _, err := s.Policy(ctx); return err },
			func() error { _, err := s.ManifestByTag(ctx, "app", "v1"); return err },
			func() error { _, err := s.Manifest(ctx, "app", digestOf("m1")); return err },
		} {
			if err := read(); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Account(ctx, "nobody"); !errors.Is(err, ErrAccountUnknown) { // absence, too
			t.Error(err)
		}
		return log.reads
	}
	if rounds := request(t.Context()); rounds != 6 {
		t.Errorf("six reads without a barrier take %d rounds", rounds)
	}
	barrier := WithBarrier(t.Context())
	if rounds := request(barrier); rounds != 1 {
		t.Errorf("a request takes %d rounds", rounds)
	}
	if rounds := request(WithBarrier(barrier)); rounds != 1 {
		t.Errorf("another request takes %d rounds", rounds)
	}
	// What another node's request has seen says nothing here.
	other := NewStore(log.machine, log, StoreConfig{})
	log.reads = 0
	if err := other.CatchUp(barrier); err != nil || log.reads != 1 {
		t.Errorf("another store under the same barrier takes %d rounds (%v)", log.reads, err)
	}
}

// A round that failed is not one: the next read asks again.
func TestBarrierIsNotPassedByAFailure(t *testing.T) {
	t.Parallel()
	s, log := troubledStore(t, StoreConfig{})
	lost := errors.New("connection lost")
	log.readIndex = func(_ context.Context, n int) error {
		if n == 0 {
			return lost
		}
		return nil
	}
	ctx := WithBarrier(t.Context())
	if err := s.CatchUp(ctx); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := errors.Join(s.CatchUp(ctx), s.CatchUp(ctx)); err != nil || log.reads != 2 {
		t.Errorf("%d rounds (%v)", log.reads, err)
	}
}

// Without a quorum, a request of several reads falls back as one read does, in the same
// time, and says so; what must not be old is refused.
func TestRequestWithoutQuorumWaitsOnce(t *testing.T) {
	s, log := troubledStore(t, StoreConfig{LocalReadAfter: 2 * time.Second, ReadTimeout: 10 * time.Second})
	local := NewStore(log.machine, &log.localLog, StoreConfig{})
	if err := local.PutManifest(t.Context(), putOf("app", "m1", "v1")); err != nil {
		t.Fatal(err)
	}
	log.readIndex = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
	synctest.Test(t, func(t *testing.T) {
		watched, stale := WatchStale(t.Context())
		ctx, begin := WithBarrier(watched), time.Now()
		if err := s.CatchUpForContent(ctx); err != nil || !stale.Happened() {
			t.Errorf("rights without a quorum: %v, stale %v", err, stale.Happened())
		}
		if _, err := s.Manifest(ctx, "app", digestOf("m1")); err != nil {
			t.Errorf("a manifest by its digest without a quorum: %v", err)
		}
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("two reads with a fallback take %v", took)
		}
		if _, err := s.ManifestByTag(ctx, "app", "v1"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a tag without a quorum: %v", err)
		}
		if _, err := s.Manifest(ctx, "app", digestOf("other")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("absence without a quorum: %v", err)
		}
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("all reads together take %v", took)
		}
		if err := s.CatchUpForNames(WithBarrier(t.Context())); !errors.Is(err, ErrUnavailable) {
			t.Errorf("rights to see tags without a quorum: %v", err)
		}
		available := NewStore(log.machine, log, StoreConfig{AvailableReads: true})
		watched, stale = WatchStale(t.Context())
		if err := available.CatchUpForNames(watched); err != nil || !stale.Happened() {
			t.Errorf("rights to see tags that may be old: %v, stale %v", err, stale.Happened())
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.CatchUpForContent(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("a client that has gone: %v", err)
		}
	})
}

// Parts of a request may read at the same time.
func TestBarrierIsSafeForSeveralReaders(t *testing.T) {
	t.Parallel()
	s, _ := openStore(t, StoreConfig{})
	ctx := WithBarrier(t.Context())
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for range 100 {
				if err := s.CatchUp(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	readers.Wait()
}
