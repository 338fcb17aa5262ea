package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Files in the machine's folder.
const (
	stateFile = "state.db"
	// incomingFile is a database that is being made or received. It counts for
	// nothing until it is renamed.
	incomingFile = "state.db.new"
)

const (
	// formatVersion is of buckets, keys and value seals, and of what has to be known to open the database
	// (anchor.go) and the log that belongs to it (consensus/journal.go).
	formatVersion = 7
	// mapBytes is the address space set aside for the database. While the file is
	// smaller, growing it does not have to wait for readers.
	mapBytes = min(16<<30, math.MaxInt>>1)
	// pageBytes does not follow the operating system's page size, so that nodes of
	// different kinds can exchange databases.
	pageBytes = 4096
	// lockTimeout is how long to wait for another process to let go of the file.
	lockTimeout = time.Second
)

// bucket is one of the database's buckets.
type bucket string

// Buckets and their keys; 0 stands for a zero byte, which no part contains, and
// time for 8 bytes whose order is that of time.
const (
	// bucketMachine is what this node knows of its own state. It differs between
	// nodes and is not part of the state hash.
	bucketMachine bucket = "machine"

	bucketCluster            bucket = "cluster"              // name of a single value
	bucketRepositories       bucket = "repositories"         // repository
	bucketLinks              bucket = "links"                // repository 0 digest
	bucketUnreferencedLinks  bucket = "unreferenced-links"   // time repository 0 digest
	bucketRepositoriesByBlob bucket = "repositories-by-blob" // digest 0 repository
	bucketBlobReferences     bucket = "blob-references"      // repository 0 blob 0 digest of a manifest
	bucketManifests          bucket = "manifests"            // repository 0 digest
	bucketManifestContents   bucket = "manifest-contents"    // repository 0 digest
	bucketReferrers          bucket = "referrers"            // repository 0 subject 0 digest
	bucketManifestParents    bucket = "manifest-parents"     // repository 0 digest 0 digest of an image index
	bucketManifestAges       bucket = "manifest-ages"        // repository 0 digest
	bucketUntagged           bucket = "untagged-manifests"   // time repository 0 digest
	bucketTags               bucket = "tags"                 // repository 0 tag
	bucketTagsByManifest     bucket = "tags-by-manifest"     // repository 0 digest 0 tag
	bucketBlobs              bucket = "blobs"                // digest
	bucketUnreferenced       bucket = "unreferenced-blobs"   // time digest
	bucketExtents            bucket = "extents"              // extent id
	bucketExtentContents     bucket = "extent-contents"      // extent id, piece
	bucketDegraded           bucket = "degraded-extents"     // extent id
	bucketShardsByNode       bucket = "shards-by-node"       // node id 0 extent id
	bucketShardUsage         bucket = "shard-usage"          // node id
	bucketUploads            bucket = "uploads"              // upload id
	bucketUploadsByTime      bucket = "uploads-by-time"      // over? time upload id
	bucketNodes              bucket = "nodes"                // node id
	bucketRequests           bucket = "requests"             // request id
	bucketRequestOrder       bucket = "request-order"        // log index, 8 bytes
	bucketSigningKeys        bucket = "signing-keys"         // id, 4 bytes
	bucketJoinTokens         bucket = "join-tokens"          // token id
	bucketAccounts           bucket = "accounts"             // name
	bucketTokenKeys          bucket = "token-keys"           // id, 4 bytes
	bucketUploadsByOwner     bucket = "uploads-by-owner"     // owner
)

// stateBuckets are the buckets that are the same on every node.
func stateBuckets() []bucket {
	return []bucket{
		bucketCluster, bucketRepositories, bucketLinks, bucketManifests, bucketManifestContents,
		bucketReferrers, bucketTags, bucketTagsByManifest, bucketBlobs, bucketUnreferenced,
		bucketExtents, bucketDegraded, bucketShardsByNode, bucketUploads, bucketUploadsByTime,
		bucketNodes, bucketRequests, bucketRequestOrder, bucketUnreferencedLinks, bucketRepositoriesByBlob,
		bucketBlobReferences, bucketManifestParents, bucketManifestAges, bucketUntagged, bucketSigningKeys,
		bucketShardUsage, bucketJoinTokens, bucketAccounts, bucketTokenKeys, bucketUploadsByOwner,
		bucketExtentContents,
	}
}

// Keys of single values.
const (
	keyFormat    = "format"     // in bucketMachine
	keyPosition  = "position"   // in bucketMachine
	keyClusterID = "cluster-id" // in bucketCluster
	keyBlobCount = "blob-count" // in bucketCluster
	keySettings  = "settings"   // in bucketCluster
	keyEra       = "era"        // in bucketCluster
	keyClock     = "clock"      // in bucketCluster

	keyRecoveries = "recoveries" // in bucketCluster
	keyAuthority  = "authority"  // in bucketCluster
	keyPolicy     = "policy"     // in bucketCluster

	keyRegistryCertificate = "registry-certificate" // in bucketCluster
)

const separator = 0

// keyOf joins the parts of a key. With an empty last part it is the prefix of
// all keys that begin with the other parts.
func keyOf(parts ...string) []byte {
	size := len(parts) - 1
	for _, part := range parts {
		size += len(part)
	}
	key := make([]byte, 0, size)
	for i, part := range parts {
		if i > 0 {
			key = append(key, separator)
		}
		key = append(key, part...)
	}
	return key
}

// timeKey is a time in front of an id. Flipping the sign bit gives times before
// 1970 their place, should a clock be that wrong.
func timeKey(unixMS int64, id string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(unixMS)^1<<63), id...)
}

// splitTimeKey is the inverse of timeKey.
func splitTimeKey(key []byte) (unixMS int64, id string, err error) {
	if len(key) < 8 {
		return 0, "", fmt.Errorf("%w: key %x is too short for a time", ErrCorrupt, key)
	}
	return int64(binary.BigEndian.Uint64(key) ^ 1<<63), string(key[8:]), nil
}

// nameBytes bounds every name that becomes part of a key.
const nameBytes = 255

// isName reports whether s can be part of a key. What repositories, tags and
// digests look like exactly is the gateway's business; here no name may run
// into its neighbour.
func isName(s string) bool {
	if s == "" || len(s) > nameBytes {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// openDatabase opens an existing database of this format. The caller keeps other
// goroutines away from path.
func openDatabase(path string) (db *bolt.DB, err error) {
	err = guard(func() error {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout: lockTimeout,
			// The list of free pages is kept on disk. Without it, bbolt walks the whole
			// tree at start, which takes longer the more there is.
			NoFreelistSync: false,
			FreelistType:   bolt.FreelistMapType,
			// An anchor changes this, and the list of free pages: see Machine.moveAnchor.
			NoSync:          false,
			NoGrowSync:      false,
			InitialMmapSize: mapBytes,
			PageSize:        pageBytes,
			// Nobody reads the statistics, and every transaction would lock them.
			NoStatistics: true,
		})
		return err
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: %w", path, ErrLocked)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, ErrCorrupt):
		return nil, fmt.Errorf("open %s: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrCorrupt, err)
	}
	if err := checkDatabase(db); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	return db, nil
}

// checkDatabase makes sure that the file is as long as its root says, and of a
// format that this version knows.
func checkDatabase(db *bolt.DB) error {
	info, err := os.Stat(db.Path())
	if err != nil {
		return err
	}
	return viewDatabase(db, func(v view) error {
		if info.Size() < v.tx.Size() {
			return fmt.Errorf("%w: file has %d bytes, its root says %d", ErrCorrupt, info.Size(), v.tx.Size())
		}
		if v.tx.Bucket([]byte(bucketMachine)) == nil {
			return fmt.Errorf("%w: bucket %q is missing", ErrCorrupt, bucketMachine)
		}
		// The format first: another one has other buckets, and is no damage.
		format, err := v.number(bucketMachine, keyFormat)
		if err != nil {
			return err
		}
		if format != formatVersion {
			return fmt.Errorf("state has format %d, this version of atoll knows format %d", format, formatVersion)
		}
		for _, b := range stateBuckets() {
			if v.tx.Bucket([]byte(b)) == nil {
				return fmt.Errorf("%w: bucket %q is missing", ErrCorrupt, b)
			}
		}
		return nil
	})
}

// createDatabase makes an empty database. A power failure during bbolt's own
// initialisation can leave a broken file (bbolt README, "Caveats"), so it happens
// under another name.
//
// Each bucket gets an empty bucket inside. bbolt keeps small buckets inside the
// page of their parent, unless they have buckets themselves (Bucket.inlineable),
// and copies such a one to the heap to read it (Bucket.openBucket). On a damaged
// page it then reads, and hands out, memory behind the copy, which can end the
// process without a word. Behind a page that is mapped there is only the map.
func createDatabase(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// An anchor of a database that is gone is none of the new one's.
	if err := createAnchor(dir); err != nil {
		return err
	}
	incoming := filepath.Join(dir, incomingFile)
	db, err := bolt.Open(incoming, 0o600, &bolt.Options{Timeout: lockTimeout, PageSize: pageBytes})
	if err != nil {
		return fmt.Errorf("create %s: %w", incoming, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range append(stateBuckets(), bucketMachine) {
			created, err := tx.CreateBucket([]byte(b))
			if err != nil {
				return err
			}
			if _, err := created.CreateBucket([]byte{separator}); err != nil {
				return err
			}
		}
		format := binary.BigEndian.AppendUint64(nil, formatVersion)
		return tx.Bucket([]byte(bucketMachine)).Put([]byte(keyFormat), seal(bucketMachine, []byte(keyFormat), format))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("create %s: %w", incoming, err)
	}
	if err := os.Rename(incoming, filepath.Join(dir, stateFile)); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
