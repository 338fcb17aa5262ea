package bench

import (
	"context"
	"math/rand/v2"

	"golang.org/x/sync/errgroup"
)

// library is what the pulls of one target read.
type library struct {
	*target
	// pushed are the blobs; it is empty for static files.
	pushed []blob
}

// things is how many blobs or files there are.
func (l *library) things() int {
	if len(l.Static) > 0 {
		return len(l.Static)
	}
	return l.config.Blobs
}

// prepare pushes the blobs.
func (l *library) prepare(ctx context.Context) error {
	if len(l.Static) > 0 {
		return nil
	}
	l.pushed = make([]blob, l.config.Blobs)
	return l.each(ctx, len(l.pushed), func(ctx context.Context, i int) (err error) {
		if l.pushed[i], err = l.newBlob(l.blobs); err != nil {
			return err
		}
		return l.push(ctx, l.base(uint64(i)), &l.pushed[i], putWhole)
	})
}

// heat reads every blob through every node once.
func (l *library) heat(ctx context.Context) error {
	nodes := max(len(l.URLs), 1)
	return l.each(ctx, l.things()*nodes, func(ctx context.Context, i int) error {
		_, err := l.client.get(ctx, l.whole(i/nodes, uint64(i%nodes)))
		return err
	})
}

// whole is a GET of all of a blob, on another node in each lap.
func (l *library) whole(thing int, lap uint64) fetch {
	if len(l.Static) > 0 {
		return fetch{url: l.Static[thing], end: l.config.Size}
	}
	b := &l.pushed[thing]
	f := fetch{url: l.baseOf(thing, lap) + "/blobs/" + b.digest, end: b.bytes}
	if l.config.Verify {
		f.expect = b
	}
	return f
}

// pulling has operation read what a library has.
func (l *library) pulling(operation func(ctx context.Context, n uint64) (int64, error)) work {
	w := work{prepare: l.prepare, heat: l.heat, operation: operation}
	if l.config.Cold {
		w.heat, w.most = nil, l.things()
	}
	return w
}

// pull reads one blob after the other.
func pull(t *target) work {
	l := &library{target: t}
	return l.pulling(func(ctx context.Context, n uint64) (int64, error) {
		return l.client.get(ctx, l.whole(pick(n, l.things())))
	})
}

// pullHerd has all clients read one blob, as when a new image starts everywhere.
func pullHerd(t *target) work {
	l := &library{target: t}
	w := l.pulling(func(ctx context.Context, n uint64) (int64, error) {
		thing, lap := pick(n, l.things())
		group, ctx := errgroup.WithContext(ctx)
		for i := range l.config.Clients {
			group.Go(func() error {
				_, err := l.client.get(ctx, l.whole(thing, lap+uint64(i)))
				return err
			})
		}
		return l.config.Size * int64(l.config.Clients), group.Wait()
	})
	w.alone = true
	return w
}

// pullRange reads a part of a blob, as lazy snapshotters and clients that go on after
// an interruption do.
func pullRange(t *target) work {
	l := &library{target: t}
	return l.pulling(func(ctx context.Context, n uint64) (int64, error) {
		f := l.whole(pick(n, l.things()))
		f.ranged, f.offset = true, rand.Int64N(l.config.Size-l.config.Chunk+1)
		f.end = f.offset + l.config.Chunk
		return l.client.get(ctx, f)
	})
}
