package gateway

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// recordedFirst are blobs that must be on record before they are read.
type recordedFirst struct {
	*memoryBlobs
	t        *testing.T
	metadata *memoryMetadata
	reads    int
}

func (b *recordedFirst) Read(ctx context.Context, extents []*proto.Extent, offset, length uint64) (io.ReadCloser, error) {
	b.metadata.mu.Lock()
	defer b.metadata.mu.Unlock()
	b.reads++
	for _, e := range extents {
		known := false
		for _, upload := range b.metadata.uploads {
			known = known || slices.ContainsFunc(upload.Extents, func(r *proto.Extent) bool { return bytes.Equal(r.Id, e.Id) })
		}
		if !known {
			b.t.Errorf("extent %x is read back and on no record: the sweep may take it meanwhile", e.Id)
		}
	}
	return b.memoryBlobs.Read(ctx, extents, offset, length)
}

// TestReadBackIsRecorded: a push whose digest is of an algorithm that was not known
// before is on record while it is read back, which may take long.
func TestReadBackIsRecorded(t *testing.T) {
	r := &registry{t: t, metadata: newMemoryMetadata(), blobs: newMemoryBlobs()}
	blobs := &recordedFirst{memoryBlobs: r.blobs, t: t, metadata: r.metadata}
	handler := New(Config{}, r.metadata, blobs)
	r.gateway = handler.(*gateway)
	r.server = startServer(t, handler)
	first, last := bytes.Repeat([]byte("a"), 3000), bytes.Repeat([]byte("b"), 2000)
	sum := sha512.Sum512(slices.Concat(first, last))
	location := r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil).Header.Get("Location")
	r.want(http.StatusAccepted, http.MethodPatch, location, bytes.NewReader(first))
	r.want(http.StatusCreated, http.MethodPut, location+"?digest=sha512:"+hex.EncodeToString(sum[:]), bytes.NewReader(last))
	if blobs.reads == 0 {
		t.Error("nothing was read back")
	}
}
