package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

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
	if err != nil {
		t.Fatal(err)
	}
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
		if got := model.pull(digest, size, worthy, time.Duration(i)); got != hit {
			t.Fatalf("pull %d of blob %d: the model says %t, the cache %t", i, number, got, hit)
		}
		if hit {
			hits++
		}
		pullThrough(t, real, digest, size, worthy)
		if real.Has(digest) != model.has(digest) {
			t.Fatalf("after pull %d of blob %d: the model has it: %t", i, number, model.has(digest))
		}
	}
	if hits < 50 || real.Status().Evicted == 0 {
		t.Errorf("%d hits and %d evictions: little was compared", hits, real.Status().Evicted)
	}
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
	if err := errors.Join(err, reader.Close()); err != nil || uint64(n) != size {
		t.Fatalf("%d bytes of %d, %v", n, size, err)
	}
	settled := func() bool {
		now := c.Status()
		return now.Hits > before.Hits || now.Fills+now.Passed+now.Failed+now.Abandoned > before.Fills+before.Passed+before.Failed+before.Abandoned
	}
	for deadline := time.Now().Add(10 * time.Second); !settled(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the cache does not settle")
		}
	}
}

func TestFluid(t *testing.T) {
	wide, narrow := &link{capacity: 10}, &link{capacity: 2}
	var world fluid
	ends := make(map[string]float64)
	end := func(name string) func() { return func() { ends[name] = world.now } }
	expect := func(want map[string]float64) {
		t.Helper()
		for name, at := range want {
			if math.Abs(ends[name]-at) > 1e-6 {
				t.Errorf("%s ends at %g, not at %g", name, ends[name], at)
			}
		}
	}
	world.start(10, end("both"), wide, narrow) // 2 a second
	world.start(40, end("wide"), wide)         // 8 a second, to the end of the other
	world.run()
	expect(map[string]float64{"both": 5, "wide": 5})

	world, wide = fluid{}, &link{capacity: 10}
	world.start(10, func() { end("first")(); world.start(10, end("third"), wide) }, wide) // 5 a second
	world.start(30, end("second"), wide)
	world.run()
	expect(map[string]float64{"first": 2, "third": 4, "second": 5})
}

// TestRollout: no cluster is faster than its links, and every byte that a client gets is counted once.
func TestRollout(t *testing.T) {
	for _, p := range policies {
		r, err := roll(randomOf(1, 3), 3, p)
		if err != nil {
			t.Fatal(err)
		}
		if r.seconds < r.least*(1-1e-9) || r.imbalance < 1-1e-9 || r.reads > 3 {
			t.Errorf("%s: %+v", p.name, r)
		}
	}
}

// TestRepair: what is lost of one shard in k+m is read k times, and no node is faster than its pace.
func TestRepair(t *testing.T) {
	r, err := repair(randomOf(1, 30), 30, 2000)
	if err != nil {
		t.Fatal(err)
	}
	// k is 8 for all but the smallest blobs, and 20 nodes have no shard of an extent.
	if math.Abs(r.read-8) > 0.1 || r.anew != 0 || math.Abs(r.paced-heldBytes/29/repairPace*r.imbalance) > 1 {
		t.Errorf("%+v", r)
	}
}

func TestZipf(t *testing.T) {
	random, z := rand.New(rand.NewPCG(1, 2)), newZipf(3, 1)
	counts := make([]float64, 3)
	const draws = 200_000
	for range draws {
		counts[z.next(random)] += 1.0 / draws
	}
	for i, want := range []float64{6.0 / 11, 3.0 / 11, 2.0 / 11} {
		if math.Abs(counts[i]-want) > 0.01 {
			t.Errorf("number %d has a part of %g, not %g", i, counts[i], want)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	if err := run([]string{"now"}, io.Discard); err == nil || !strings.Contains(err.Error(), `no "now"`) {
		t.Errorf("error %v", err)
	}
}
