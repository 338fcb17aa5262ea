package metadata

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// checkInvariants compares everything that the state says twice. It is what
// every test of the state ends with.
func checkInvariants(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Verify(); err != nil {
		t.Error(err)
	}
	check := &invariants{t: t, expected: map[bucket][]string{}, references: map[string]uint64{}, uploadsByOwner: map[string]uint64{}}
	if err := m.view(check.run); err != nil {
		t.Error(err)
	}
}

type invariants struct {
	t testing.TB
	view
	// expected are the keys that the buckets derived from others must have.
	expected   map[bucket][]string
	references map[string]uint64
	// uploadsByOwner counts uploads in progress.
	uploadsByOwner map[string]uint64
}

func (i *invariants) run(v view) error {
	i.view = v
	for _, step := range []func() error{i.links, i.manifests, i.tags, i.uploads, i.owners, i.accounts, i.blobs, i.extents, i.requests} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, b := range []bucket{
		bucketManifestContents, bucketReferrers, bucketTagsByManifest, bucketUnreferenced,
		bucketUnreferencedLinks, bucketRepositoriesByBlob, bucketBlobReferences, bucketManifestParents, bucketUntagged, bucketManifestAges,
		bucketDegraded, bucketShardsByNode, bucketShardUsage, bucketUploadsByTime, bucketUploadsByOwner, bucketExtents, bucketExtentContents, bucketRequests,
	} {
		actual, _, err := v.rests(b, span{}, 1<<30)
		if err != nil {
			return err
		}
		expected := slices.Sorted(slices.Values(i.expected[b]))
		if !slices.Equal(slices.Compact(expected), actual) {
			i.t.Errorf("bucket %s has keys\n%q\nother buckets say\n%q", b, actual, expected)
		}
	}
	return nil
}

func (i *invariants) expect(b bucket, key []byte) { i.expected[b] = append(i.expected[b], string(key)) }

func (i *invariants) links() error {
	return i.scan(bucketLinks, span{}, func(key, value []byte) error {
		repository, digest, _ := strings.Cut(string(key), "\x00")
		i.references[digest]++
		var link proto.Link
		if err := decode(bucketLinks, key, value, &link); err != nil {
			return err
		}
		i.expect(bucketRepositoriesByBlob, keyOf(digest, repository))
		referenced, err := i.any(bucketBlobReferences, keyOf(repository, digest, ""))
		if err != nil {
			return err
		}
		if referenced != (link.GetUnreferencedUnixMs() == 0) {
			i.t.Errorf("blob %s in repository %q: referenced %v, record %v", digest, repository, referenced, &link)
		}
		if !referenced {
			i.expect(bucketUnreferencedLinks, linkTimeKey(&link, repository, digest))
		}
		exists, err := i.has(bucketRepositories, keyOf(repository))
		if !exists {
			i.t.Errorf("blob %s is linked in repository %q, which does not exist", digest, repository)
		}
		return err
	})
}

func (i *invariants) manifests() error {
	return i.scan(bucketManifests, span{}, func(key, value []byte) error {
		repository, digest, _ := strings.Cut(string(key), "\x00")
		var manifest proto.Manifest
		if err := decode(bucketManifests, key, value, &manifest); err != nil {
			return err
		}
		if manifest.GetStoredAsBlob() {
			i.references[digest]++
		} else {
			i.expect(bucketManifestContents, key)
		}
		if manifest.GetSubject() != "" {
			i.expect(bucketReferrers, keyOf(repository, manifest.GetSubject(), digest))
		}
		for _, blob := range blobsOf(&manifest) {
			i.expect(bucketBlobReferences, keyOf(repository, blob, digest))
		}
		for _, child := range manifest.GetManifests() {
			i.expect(bucketManifestParents, keyOf(repository, child.GetDigest(), digest))
		}
		if err := i.untagged(repository, &manifest); err != nil {
			return err
		}
		if manifest.GetDigest() != digest || len(manifest.GetContent()) > 0 {
			i.t.Errorf("manifest %s in repository %q: header %v", digest, repository, &manifest)
		}
		return nil
	})
}

func (i *invariants) untagged(repository string, manifest *proto.Manifest) error {
	tagged, err := i.any(bucketTagsByManifest, keyOf(repository, manifest.GetDigest(), ""))
	if err != nil {
		return err
	}
	listed, err := i.any(bucketManifestParents, keyOf(repository, manifest.GetDigest(), ""))
	if err != nil {
		return err
	}
	i.expect(bucketManifestAges, keyOf(repository, manifest.GetDigest()))
	since, _, err := i.untaggedSince(repository, manifest.GetDigest())
	if err != nil {
		return err
	}
	if untagged := !tagged && !listed; untagged != (since != 0) {
		i.t.Errorf("manifest %s in repository %q: tagged %v, listed %v, untagged since %d", manifest.GetDigest(), repository, tagged, listed, since)
	}
	if since != 0 {
		i.expect(bucketUntagged, manifestTimeKey(since, repository, manifest.GetDigest()))
	}
	return nil
}

func (i *invariants) tags() error {
	return i.scan(bucketTags, span{}, func(key, value []byte) error {
		repository, name, _ := strings.Cut(string(key), "\x00")
		var tag proto.Tag
		if err := decode(bucketTags, key, value, &tag); err != nil {
			return err
		}
		i.expect(bucketTagsByManifest, keyOf(repository, tag.GetDigest(), name))
		exists, err := i.has(bucketManifests, keyOf(repository, tag.GetDigest()))
		if !exists {
			i.t.Errorf("tag %s of repository %q points at %s, which does not exist", name, repository, tag.GetDigest())
		}
		return err
	})
}

func (i *invariants) uploads() error {
	return i.scan(bucketUploads, span{}, func(key, value []byte) error {
		var upload proto.UploadRecord
		if err := decode(bucketUploads, key, value, &upload); err != nil {
			return err
		}
		i.expect(bucketUploadsByTime, uploadTimeKey(string(key), &upload))
		if isOver(&upload) {
			if len(upload.GetExtentIds()) > 0 {
				i.t.Errorf("upload %s is over and has extents", key)
			}
			return nil
		}
		if owner := upload.GetOwner(); owner != "" {
			i.uploadsByOwner[owner]++
			i.expect(bucketUploadsByOwner, keyOf(owner))
		}
		return i.owned(upload.GetExtentIds(), upload.GetSize(), func(e *proto.ExtentRecord) bool {
			return e.GetUploadId() == string(key)
		})
	})
}

func (i *invariants) owners() error {
	for owner, expected := range i.uploadsByOwner {
		if count, err := i.uploadsOf(owner); err != nil || count != expected {
			i.t.Errorf("%s has %d uploads in progress, the counter says %d (%v)", owner, expected, count, err)
		}
	}
	return nil
}

func (i *invariants) accounts() error {
	return i.scan(bucketAccounts, span{}, func(key, value []byte) error {
		var account proto.Account
		if err := decode(bucketAccounts, key, value, &account); err != nil {
			return err
		}
		if err := checkAccount(&account); err != nil || account.GetName() != string(key) || account.GetGeneration() == 0 {
			i.t.Errorf("account %q: %v (%v)", key, &account, err)
		}
		return nil
	})
}

func (i *invariants) blobs() error {
	count := uint64(0)
	err := i.scan(bucketBlobs, span{}, func(key, value []byte) error {
		count++
		digest := string(key)
		var blob proto.BlobRecord
		if err := decode(bucketBlobs, key, value, &blob); err != nil {
			return err
		}
		if blob.GetReferences() != i.references[digest] {
			i.t.Errorf("blob %s counts %d references and has %d", digest, blob.GetReferences(), i.references[digest])
		}
		delete(i.references, digest)
		if blob.GetReferences() == 0 {
			i.expect(bucketUnreferenced, timeKey(blob.GetUnreferencedUnixMs(), digest))
		}
		return i.owned(blob.GetExtentIds(), blob.GetSize(), func(e *proto.ExtentRecord) bool {
			return e.GetBlobDigest() == digest
		})
	})
	if err != nil {
		return err
	}
	for digest, references := range i.references {
		i.t.Errorf("blob %s has %d references and does not exist", digest, references)
	}
	counted, err := i.number(bucketCluster, keyBlobCount)
	if counted != count {
		i.t.Errorf("there are %d blobs, the counter says %d", count, counted)
	}
	return err
}

// owned checks that extents exist, have this size together, and this owner, and that
// inline ones are whole and at the beginning.
func (i *invariants) owned(ids [][]byte, size uint64, isOwner func(*proto.ExtentRecord) bool) error {
	for begin := uint64(0); len(ids) > 0; ids = ids[1:] {
		id := ids[0]
		i.expect(bucketExtents, id)
		var extent proto.ExtentRecord
		if err := i.mustRecord(bucketExtents, id, &extent); err != nil {
			return err
		}
		size -= extent.GetExtent().GetSize()
		begin += extent.GetExtent().GetSize()
		if err := i.inline(extent.GetExtent(), begin); err != nil {
			return err
		}
		if !isOwner(&extent) {
			i.t.Errorf("extent %q has another owner: %v", id, &extent)
		}
	}
	if size != 0 {
		i.t.Errorf("extents %q: sizes differ by %d from their owner's", ids, size)
	}
	return nil
}

// inline checks an inline extent that ends at a byte of its blob.
func (i *invariants) inline(e *proto.Extent, end uint64) error {
	if len(e.GetContent()) > 0 {
		i.t.Errorf("extent %q has its content in its record", e.GetId())
	}
	if !isInline(e) {
		return nil
	}
	for n := range contentPieces(e) {
		i.expect(bucketExtentContents, contentKey(e.GetId(), n))
	}
	if len(e.GetHolders()) > 0 || len(e.GetDamagedShards()) > 0 || end > MaxInlineExtentEnd {
		i.t.Errorf("inline extent %v ends at byte %d", e, end)
	}
	return i.fillContent(e)
}

func (i *invariants) extents() error {
	usage := map[string]*proto.ShardUsage{}
	err := i.scan(bucketExtents, span{}, func(key, value []byte) error {
		var record proto.ExtentRecord
		if err := decode(bucketExtents, key, value, &record); err != nil {
			return err
		}
		for _, damaged := range record.GetExtent().GetDamagedShards() {
			i.expect(bucketDegraded, key)
			if record.GetExtent().GetHolders()[damaged] == "" {
				i.t.Errorf("shard %d of extent %q is damaged and nowhere", damaged, key)
			}
		}
		for number, holder := range record.GetExtent().GetHolders() {
			if holder == "" {
				i.expect(bucketDegraded, key)
				continue
			}
			if usage[holder] == nil {
				usage[holder] = &proto.ShardUsage{}
				i.expect(bucketShardUsage, keyOf(holder))
			}
			usage[holder].Shards++
			usage[holder].Bytes += shardBytes(record.GetExtent())
			shard := keyOf(holder, string(key))
			i.expect(bucketShardsByNode, shard)
			value, _, err := i.value(bucketShardsByNode, shard)
			if err != nil {
				return err
			}
			if expected := fmt.Sprintf("\x00\x00\x00%c", number); string(value) != expected {
				i.t.Errorf("shard %d of extent %q on node %s has the number %x", number, key, holder, value)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return i.scan(bucketShardUsage, span{}, func(key, value []byte) error {
		var counted proto.ShardUsage
		if err := decode(bucketShardUsage, key, value, &counted); err != nil {
			return err
		}
		if !pb.Equal(&counted, usage[string(key)]) {
			i.t.Errorf("node %s holds %v, the record says %v", key, usage[string(key)], &counted)
		}
		return nil
	})
}

func (i *invariants) requests() error {
	return i.scan(bucketRequestOrder, span{}, func(_, id []byte) error {
		i.expect(bucketRequests, id)
		return nil
	})
}
