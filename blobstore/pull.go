package blobstore

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/atollregistry/atoll/blobstore/cache"
	"github.com/atollregistry/atoll/proto"
)

// CacheStatus tells of the cache.
type CacheStatus = cache.Status

// IsReadError says whether an error of sending a file is of the file, not of the connection.
func IsReadError(err error) bool { return cache.IsReadError(err) }

// openCache opens the cache of whole blobs; nil if there is to be none, or it can't be had: the node is better
// off without than not at all.
func openCache(cfg Config, first *Disk) *cache.Cache {
	if cfg.CacheBytes == 0 {
		if err := os.RemoveAll(cfg.CacheDir); err != nil {
			cfg.Logger.Warn().Err(err).Msg("could not remove the cache that there was")
		}
		return nil
	}
	opened, err := cache.Open(cache.Config{
		Dir: cfg.CacheDir, Bytes: cfg.CacheBytes, Logger: cfg.Logger, RequireSpace: first.requireSpace,
		Room: func() (uint64, error) {
			if fault := first.retired(); fault != nil {
				return 0, fault
			}
			if first.resting() {
				return 0, ErrDisk
			}
			free, _, _, err := first.room()
			return free, err
		},
	})
	if err != nil {
		cfg.Logger.Error().Err(err).Msg("blobs are sent without a cache")
		return nil
	}
	return opened
}

// Pull is Read for a client, of a blob with a digest: it may come from this node's cache,
// and come into it. A worthy blob stays there, others if they are read a second time. What is inline as a whole touches no
// disk.
func (s *Store) Pull(ctx context.Context, digest string, extents []*proto.Extent, offset, length uint64, worthy bool) (io.ReadCloser, error) {
	if areInline(extents) {
		return s.Read(ctx, extents, offset, length)
	}
	size := blobSize(extents)
	if size > uint64(s.cfg.SmallBlobBytes) && s.isMirroredHere(extents) {
		return s.readMirror(ctx, extents, offset, length)
	}
	if s.cache == nil || size <= uint64(s.cfg.SmallBlobBytes) {
		return s.Read(ctx, extents, offset, length)
	}
	if offset > size || length > size-offset {
		return nil, fmt.Errorf("read blob: %d bytes from %d of %d: %w", length, offset, size, ErrInvalid)
	}
	request := cache.Request{
		Digest: digest, Size: size, Offset: offset, Length: length, Worthy: worthy,
		Source: func(ctx context.Context, offset, length uint64) (io.ReadCloser, error) {
			return s.Read(ctx, extents, offset, length)
		},
	}
	cached := s.cache.Open(ctx, request)
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

// isMirroredHere says whether this node can read all extents from its own shards, mirrored ones of
// which it has a copy, and from its records.
func (s *Store) isMirroredHere(extents []*proto.Extent) bool {
	return !slices.ContainsFunc(extents, func(e *proto.Extent) bool {
		return !isInline(e) && (e.GetLayout().GetDataShards() > 1 || !slices.Contains(e.GetHolders(), s.cluster.Self()))
	})
}

// Keeps says whether this node could keep the blob whole.
func (s *Store) Keeps(extents []*proto.Extent) bool {
	return s.cache != nil && s.cache.Takes(blobSize(extents))
}

// Cache tells of the cache; ok is false if there is none.
func (s *Store) Cache() (status CacheStatus, ok bool) {
	if s.cache == nil {
		return CacheStatus{}, false
	}
	return s.cache.Status(), true
}
