package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// memoryBlobs is Blobs in a map from extent id to bytes.
type memoryBlobs struct {
	mu      sync.Mutex
	extents map[string][]byte
	// extentBytes is how long an extent is, so that small blobs have several.
	extentBytes int
	// appendErr and readErr make the methods fail; readErrAfter lets Read's reader
	// fail after so many bytes, if not negative.
	appendErr, readErr error
	readErrAfter       int
}

func newMemoryBlobs() *memoryBlobs {
	return &memoryBlobs{extents: map[string][]byte{}, extentBytes: 1 << 20, readErrAfter: -1}
}

// failReads makes what Read opens fail after so many bytes.
func (b *memoryBlobs) failReads(err error, after int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.readErr, b.readErrAfter = err, after
}

func (b *memoryBlobs) store(content []byte) *proto.Extent {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := fmt.Sprintf("extent-%d", len(b.extents))
	b.extents[id] = slices.Clone(content)
	return &proto.Extent{Id: []byte(id), Size: uint64(len(content))}
}

func (b *memoryBlobs) Append(
	ctx context.Context, from blobstore.Progress, r io.Reader, record func(context.Context, blobstore.Recorded) error,
) (blobstore.Progress, []*proto.Extent, uint64, error) {
	b.mu.Lock()
	failure := b.appendErr
	b.mu.Unlock()
	to, tailFrom := from, from.Size
	var tail []*proto.Extent
	for buffer := make([]byte, b.extentBytes); ; {
		// Not errors.Is: a body that broke off wraps what ReadFull returns at the end.
		n, err := io.ReadFull(r, buffer)
		if err != nil && !errors.Is(err, io.EOF) && err != io.ErrUnexpectedEOF {
			return from, nil, 0, fmt.Errorf("read: %w", err)
		}
		if failure != nil && (n > 0 || err != nil) {
			return from, nil, 0, failure
		}
		if n > 0 {
			if len(tail) > 0 && record != nil { // There is more, so what was last is full.
				done := blobstore.Recorded{ExpectedSize: tailFrom, Extents: tail, Progress: to}
				if err := record(ctx, done); err != nil {
					return from, nil, 0, fmt.Errorf("record: %w", err)
				}
				tail, tailFrom = nil, to.Size
			}
			tail = append(tail, b.store(buffer[:n]))
			to.Size += uint64(n)
			to.Hashes = advance(to.Hashes, buffer[:n])
		}
		if err != nil {
			return to, tail, tailFrom, nil
		}
	}
}

// advance adds bytes to running hashes; SHA-256 is always kept.
func advance(states []*proto.HashState, content []byte) (advanced []*proto.HashState) {
	if len(states) == 0 {
		start, _ := sha256.New().(encoding.BinaryMarshaler).MarshalBinary()
		states = []*proto.HashState{{Algorithm: "sha256", State: start}}
	}
	for _, state := range states {
		running := newHash(state.Algorithm)
		if err := running.(encoding.BinaryUnmarshaler).UnmarshalBinary(state.State); err != nil {
			panic(err)
		}
		running.Write(content)
		next, _ := running.(encoding.BinaryMarshaler).MarshalBinary()
		advanced = append(advanced, &proto.HashState{Algorithm: state.Algorithm, State: next})
	}
	return advanced
}

func (b *memoryBlobs) Read(_ context.Context, extents []*proto.Extent, offset, length uint64) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.readErr != nil && b.readErrAfter < 0 {
		return nil, b.readErr
	}
	var all []byte
	for _, extent := range extents {
		all = append(all, b.extents[string(extent.Id)]...)
	}
	if offset+length > uint64(len(all)) {
		return nil, blobstore.ErrInvalid
	}
	part := all[offset : offset+length]
	if b.readErr != nil {
		return io.NopCloser(io.MultiReader(bytes.NewReader(part[:b.readErrAfter]), failingReader{b.readErr})), nil
	}
	return io.NopCloser(bytes.NewReader(part)), nil
}

func (b *memoryBlobs) Pull(ctx context.Context, _ string, extents []*proto.Extent, offset, length uint64, _ bool) (io.ReadCloser, error) {
	return b.Read(ctx, extents, offset, length)
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }
