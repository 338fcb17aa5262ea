package blobstore

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/atollregistry/atoll/blobstore/cache"
	"github.com/atollregistry/atoll/proto"
)

// CacheStatus tells of the cache.
type CacheStatus = cache.Status

// openCache opens the cache of whole blobs; nil if there is to be none.
func openCache(cfg Config, disks *disks) (*cache.Cache, error) {
	if cfg.CacheBytes == 0 {
		return nil, nil
	}
	return cache.Open(cache.Config{
		Dir: cfg.CacheDir, Bytes: cfg.CacheBytes, Logger: cfg.Logger,
		Room: func() (uint64, error) {
			free, _, err := disks.all[0].Space()
			return free, err
		},
	})
}

// Pull is Read for a client, of a blob with a digest: it may come from this node's cache,
// and come into it. A worthy blob stays there, and so does one whose home this node is; others
// if they are read a second time.
func (s *Store) Pull(ctx context.Context, digest string, extents []*proto.Extent, offset, length uint64, worthy bool) (io.ReadCloser, error) {
	size := blobSize(extents)
	if s.cache == nil || size <= uint64(s.cfg.SmallBlobBytes) || s.isMirroredHere(extents) {
		return s.Read(ctx, extents, offset, length)
	}
	if offset > size || length > size-offset {
		return nil, fmt.Errorf("read blob: %d bytes from %d of %d: %w", length, offset, size, ErrInvalid)
	}
	worthy = worthy || Home(s.cluster.Nodes(), digest, extents) == s.cluster.Self()
	cached := s.cache.Open(ctx, cache.Request{
		Digest: digest, Size: size, Offset: offset, Length: length, Worthy: worthy,
		Source: func(ctx context.Context, offset, length uint64) (io.ReadCloser, error) {
			return s.Read(ctx, extents, offset, length)
		},
	})
	if cached == nil {
		return s.Read(ctx, extents, offset, length)
	}
	return cached, nil
}

func blobSize(extents []*proto.Extent) (size uint64) {
	for _, extent := range extents {
		size += extent.GetSize()
	}
	return size
}

// AtHand says whether this node needs no other to read a blob.
func (s *Store) AtHand(digest string, extents []*proto.Extent) bool {
	return s.isMirroredHere(extents) || s.cache != nil && s.cache.Has(digest)
}

// isMirroredHere says whether this node can read all extents from its own shards: mirrored ones of
// which it has a copy.
func (s *Store) isMirroredHere(extents []*proto.Extent) bool {
	return !slices.ContainsFunc(extents, func(e *proto.Extent) bool {
		return e.GetLayout().GetDataShards() > 1 || !slices.Contains(e.GetHolders(), s.cluster.Self())
	})
}

// Cache tells of the cache; ok is false if there is none.
func (s *Store) Cache() (status CacheStatus, ok bool) {
	if s.cache == nil {
		return CacheStatus{}, false
	}
	return s.cache.Status(), true
}
