package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/atollregistry/atoll/blobstore/cache"
)

// TestCacheModel has the model and a real cache pull the same blobs.
func TestCacheModel(t *testing.T) {
	const limit = 400 << 10
	real, err := cache.Open(cache.Config{
		Dir: t.TempDir(), Bytes: limit, Logger: zerolog.Nop(),
		Room:         func() (uint64, error) { return 1 << 30, nil },
		RequireSpace: func(int) error { return nil },
	})
	require.NoError(t, err)
	defer real.Close()
	model := newCacheModel(limit)
	random := rand.New(rand.NewPCG(1, 2))
	pick := newZipf(60, 0.8)
	hits := 0
	for i := range 600 {
		number := pick.next(random)
		digest := fmt.Sprintf("sha256:%064d", number)
		size, worthy := uint64(1000+number*2500), random.IntN(4) == 0
		hit := real.Has(digest)
		require.Equal(t, hit, model.pull(digest, size, worthy, time.Duration(i)), "pull %d of blob %d", i, number)
		if hit {
			hits++
		}
		pullThrough(t, real, digest, size, worthy)
		require.Equal(t, real.Has(digest), model.has(digest), "after pull %d of blob %d", i, number)
	}
	require.Greater(t, hits, 50, "the cache was of no use, so that little was compared")
	require.Positive(t, real.Status().Evicted, "nothing had to go, so that little was compared")
}

// pullThrough has a client read a blob by a real cache, and returns when it has settled.
func pullThrough(t *testing.T, c *cache.Cache, digest string, size uint64, worthy bool) {
	t.Helper()
	before := c.Status()
	reader := c.Open(t.Context(), cache.Request{
		Digest: digest, Size: size, Length: size, Worthy: worthy,
		Source: func(_ context.Context, _, length uint64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(make([]byte, length))), nil
		},
	})
	if reader == nil {
		return
	}
	n, err := io.Copy(io.Discard, reader)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	require.NoError(t, reader.Close())
	settled := func() bool {
		now := c.Status()
		return now.Hits > before.Hits || now.Fills+now.Passed+now.Failed+now.Abandoned > before.Fills+before.Passed+before.Failed+before.Abandoned
	}
	require.Eventually(t, settled, 10*time.Second, time.Millisecond)
}

func TestFluid(t *testing.T) {
	wide, narrow := &link{capacity: 10}, &link{capacity: 2}
	var world fluid
	ends := make(map[string]float64)
	end := func(name string) func() { return func() { ends[name] = world.now } }
	world.start(10, end("both"), wide, narrow) // 2 a second
	world.start(40, end("wide"), wide)         // 8 a second, to the end of the other
	world.run()
	require.InDelta(t, 5, ends["both"], 1e-6)
	require.InDelta(t, 5, ends["wide"], 1e-6)

	world, wide = fluid{}, &link{capacity: 10}
	world.start(10, func() { end("first")(); world.start(10, end("third"), wide) }, wide) // 5 a second
	world.start(30, end("second"), wide)
	world.run()
	require.InDelta(t, 2, ends["first"], 1e-6)
	require.InDelta(t, 4, ends["third"], 1e-6)
	require.InDelta(t, 5, ends["second"], 1e-6)
}

// TestRollout: no cluster is faster than its links, and every byte that a client gets is counted once.
func TestRollout(t *testing.T) {
	for _, p := range policies {
		r, err := roll(randomOf(1, 3), 3, p)
		require.NoError(t, err)
		require.GreaterOrEqual(t, r.seconds, r.least*(1-1e-9), p.name)
		require.GreaterOrEqual(t, r.imbalance, 1-1e-9)
		require.LessOrEqual(t, r.reads, 3.0)
	}
}

// TestRepair: what is lost of one shard in k+m is read k times, and no node is faster than its pace.
func TestRepair(t *testing.T) {
	r, err := repair(randomOf(1, 30), 30)
	require.NoError(t, err)
	require.InDelta(t, 8, r.read, 0.1, "k is 8 for all but the smallest blobs")
	require.Zero(t, r.anew, "20 nodes have no shard of an extent")
	require.InDelta(t, heldBytes/29/repairPace*r.imbalance, r.paced, 1)
}

func TestZipf(t *testing.T) {
	random, z := rand.New(rand.NewPCG(1, 2)), newZipf(3, 1)
	counts := make([]float64, 3)
	const draws = 200_000
	for range draws {
		counts[z.next(random)] += 1.0 / draws
	}
	for i, want := range []float64{6.0 / 11, 3.0 / 11, 2.0 / 11} {
		require.Less(t, math.Abs(counts[i]-want), 0.01)
	}
}

func TestRunRefuses(t *testing.T) {
	require.ErrorContains(t, run([]string{"now"}, io.Discard), `no "now"`)
}
