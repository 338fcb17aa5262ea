package metadata

import (
	"context"
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// GarbageKind is one of the things that collection drops.
type GarbageKind string

// What is collected. An upload, a link and a manifest are named REPOSITORY@ID.
const (
	GarbageUpload   GarbageKind = "upload"            // rested for too long
	GarbageManifest GarbageKind = "untagged manifest" // only if these are collected
	GarbageLink     GarbageKind = "unreferenced blob" // in one repository; its bytes may be in use in others
	GarbageBlob     GarbageKind = "blob"              // nothing refers to it; its bytes go
)

// GarbageCount is how much there is of one kind.
type GarbageCount struct {
	// Due is what collection drops now, Later what it drops once its time is over
	// if nothing refers to it until then.
	Due   int
	Later int
	// DueBytes and LaterBytes is what goes from the cluster's disks with it, as
	// clients count bytes, without parity. A blob of several repositories counts
	// with none of its links.
	DueBytes   uint64
	LaterBytes uint64
}

// Garbage is what collection would drop.
type Garbage struct {
	Kinds map[GarbageKind]GarbageCount
	// Names of what is due, the first maxGarbageNames of each kind.
	Names map[GarbageKind][]string
}

// maxGarbageNames bounds the names that a report lists of each kind.
const maxGarbageNames = 100

// garbagePage is how many records a report reads in one transaction: an open one
// keeps the database from reusing pages.
const garbagePage = 1000

// Garbage reports what collection would drop, without dropping it. Untagged
// manifests count only if they are collected. The state may change while it is
// read; each record is seen as it was at some moment of the call. Errors:
// ErrUnavailable.
func (s *Store) Garbage(ctx context.Context) (*Garbage, error) {
	report := &Garbage{Kinds: map[GarbageKind]GarbageCount{}, Names: map[GarbageKind][]string{}}
	command := s.expireNow()
	for _, kind := range []struct {
		name   GarbageKind
		bucket bucket
		prefix string
		before int64
		look   func(v view, key string) (name string, bytes uint64, err error)
	}{
		{GarbageUpload, bucketUploadsByTime, uploadOpen, command.GetUploadsBeforeUnixMs(), view.garbageUpload},
		{GarbageManifest, bucketUntagged, "", command.GetManifestsBeforeUnixMs(), view.garbageManifest},
		{GarbageLink, bucketUnreferencedLinks, "", command.GetBlobsBeforeUnixMs(), view.garbageLink},
		{GarbageBlob, bucketUnreferenced, "", command.GetBlobsBeforeUnixMs(), view.garbageBlob},
	} {
		if kind.name == GarbageManifest && kind.before == 0 {
			continue
		}
		count := GarbageCount{}
		err := s.eachByTime(ctx, kind.bucket, kind.prefix, func(v view, unixMS int64, key string) error {
			name, bytes, err := kind.look(v, key)
			switch {
			case err != nil || name == "":
				return err
			case unixMS >= kind.before:
				count.Later, count.LaterBytes = count.Later+1, count.LaterBytes+bytes
				return nil
			}
			count.Due, count.DueBytes = count.Due+1, count.DueBytes+bytes
			if len(report.Names[kind.name]) < maxGarbageNames {
				report.Names[kind.name] = append(report.Names[kind.name], name)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list garbage: %w", err)
		}
		report.Kinds[kind.name] = count
	}
	return report, nil
}

// eachByTime visits the records of a bucket that is in order of time, some in
// each transaction.
func (s *Store) eachByTime(ctx context.Context, b bucket, prefix string, visit func(v view, unixMS int64, key string) error) error {
	var after []byte
	for more := true; more; {
		seen := 0
		err := s.read(ctx, func(v view) error {
			return v.scan(b, span{prefix: []byte(prefix), after: after}, func(rest, _ []byte) error {
				if seen++; seen > garbagePage {
					return errStop
				}
				unixMS, key, err := splitTimeKey(rest)
				if err != nil {
					return err
				}
				after = append([]byte(nil), rest...)
				return visit(v, unixMS, key)
			})
		})
		if err != nil {
			return err
		}
		more = seen > garbagePage
	}
	return nil
}

func (v view) garbageUpload(id string) (name string, bytes uint64, err error) {
	var record proto.UploadRecord
	err = v.mustRecord(bucketUploads, keyOf(id), &record)
	return record.GetRepository() + "@" + id, record.GetSize(), err
}

// garbageManifest returns no name for a manifest that stays because of its
// subject. The blobs that go with a manifest have a grace of their own.
func (v view) garbageManifest(key string) (name string, bytes uint64, err error) {
	repository, digest := splitRepositoryKey(key)
	var manifest proto.Manifest
	if err := v.mustRecord(bucketManifests, keyOf(repository, digest), &manifest); err != nil {
		return "", 0, err
	}
	kept, err := v.hasSubject(repository, &manifest)
	if err != nil || kept {
		return "", 0, err
	}
	return repository + "@" + digest, manifest.GetSize(), nil
}

func (v view) garbageLink(key string) (name string, bytes uint64, err error) {
	repository, digest := splitRepositoryKey(key)
	var record proto.BlobRecord
	if err := v.mustRecord(bucketBlobs, keyOf(digest), &record); err != nil {
		return "", 0, err
	}
	if record.GetReferences() == 1 {
		bytes = record.GetSize()
	}
	return repository + "@" + digest, bytes, nil
}

func (v view) garbageBlob(digest string) (name string, bytes uint64, err error) {
	var record proto.BlobRecord
	err = v.mustRecord(bucketBlobs, keyOf(digest), &record)
	return digest, record.GetSize(), err
}
