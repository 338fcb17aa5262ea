package metadata

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

const (
	// crowdRepositories share tags and blobs alike.
	crowdRepositories = 100
	// blobsPerImage and tagsPerImage have each blob in one image, and as many tags as blobs.
	blobsPerImage, tagsPerImage = 10, 10
	// raftBatch is how many entries Raft hands to Apply at most (consensus, MaxAppendEntries).
	raftBatch = 64
	// fillBatch is for what is not measured.
	fillBatch = 2000
)

// crowdNodes hold all shards: two of data and one of parity.
var crowdNodes = []string{
	"4f1c2c5e-6a1b-4a52-9d0e-0c6a3a1f7b01", "9a7d8b34-2f0c-4be1-8f65-5d2b9c8e6a02", "c3e5f791-7d48-4c36-a2b9-8e1f4d0b5c03",
}

// crowd is a state of many repositories. Each has blobs of one extent, as they come from
// pushes in one request, and images of ten of them, each under ten tags.
type crowd struct {
	b      testing.TB
	store  *Store
	log    *localLog
	blobs  int // so many are there, of all repositories in turn
	images int // likewise
	moved  int // tags that were pointed at another image
	nowMS  int64
}

func newCrowd(b testing.TB, s *Store, log *localLog) *crowd {
	joinNodes(b, s, crowdNodes...)
	return &crowd{b: b, store: s, log: log, nowMS: time.Now().UnixMilli()}
}

// cost is what commands took, making them aside.
type cost struct {
	commands        int
	took, processor time.Duration
}

// putBlobs grows to so many blobs.
func (c *crowd) putBlobs(until, batch int) cost {
	return c.apply(max(0, until-c.blobs), batch, func() *proto.Command {
		repository, digest := crowdRepository(c.blobs), crowdBlob(c.blobs)
		extent := crowdExtent(c.blobs)
		c.blobs++
		return &proto.Command{Body: &proto.Command_CommitBlob{CommitBlob: &proto.CommitBlob{
			Repository: repository, Digest: digest, Size: extent.GetSize(), Extents: []*proto.Extent{extent},
		}}}
	})
}

// putImages grows to so many images, each with its tags.
func (c *crowd) putImages(until int) {
	c.apply(until-c.images, fillBatch/blobsPerImage, func() *proto.Command {
		put := crowdImage(c.images)
		for n := range tagsPerImage {
			put.Tags = append(put.Tags, crowdTag(c.images, n))
		}
		c.images++
		return &proto.Command{Body: &proto.Command_PutManifest{PutManifest: put}}
	})
}

// moveTags points so many tags at another image of their repository, each by a push of
// that image's manifest.
func (c *crowd) moveTags(count int) cost {
	return c.apply(count, raftBatch, func() *proto.Command {
		c.moved++
		from := c.moved * 7919 % c.images
		put := crowdImage((from + crowdRepositories) % c.images)
		put.Tags = []string{crowdTag(from, c.moved%tagsPerImage)}
		return &proto.Command{Body: &proto.Command_PutManifest{PutManifest: put}}
	})
}

// apply carries out commands in batches, one after the other.
func (c *crowd) apply(count, batchSize int, next func() *proto.Command) cost {
	spent := cost{commands: count}
	for done := 0; done < count; {
		var batch []consensus.Entry
		for ; len(batch) < batchSize && done < count; done++ {
			c.log.last++
			command := next()
			command.RequestId, command.TimeUnixMs = requestID(c.log.last), c.nowMS+int64(c.log.last)/100
			batch = append(batch, entryOf(c.b, c.log.last, command))
		}
		processor, began := processorTime(), time.Now()
		results, err := c.log.machine.Apply(batch)
		spent.took += time.Since(began)
		spent.processor += processorTime() - processor
		if err != nil {
			c.b.Fatal(err)
		}
		for _, encoded := range results {
			result, err := knownResult(encoded, false)
			if err != nil || result.GetRefusal() != 0 {
				c.b.Fatal(result, err)
			}
		}
	}
	return spent
}

// anyTag and anyBlob wander through all that are there.
func (c *crowd) anyTag() (repository, tag string) {
	c.moved += 7919
	image := c.moved % c.images
	return crowdRepository(image), crowdTag(image, c.moved%tagsPerImage)
}

func (c *crowd) anyBlob() (repository, digest string) {
	c.moved += 7919
	blob := c.moved % c.blobs
	return crowdRepository(blob), crowdBlob(blob)
}

func crowdRepository(i int) string { return fmt.Sprintf("team-%02d/service", i%crowdRepositories) }
func crowdBlob(i int) string       { return digestOf(fmt.Sprintf("blob %d", i)) }
func crowdTag(image, n int) string { return fmt.Sprintf("main-%08d-%d", image, n) }

// crowdExtent is the one extent of a blob.
func crowdExtent(blob int) *proto.Extent {
	id := sha256.Sum256(fmt.Appendf(nil, "extent %d", blob))
	return &proto.Extent{
		Id: id[:extentIDBytes], Size: 30 << 20, Holders: slices.Clone(crowdNodes),
		Layout: &proto.Layout{DataShards: 2, ParityShards: 1, CellBytes: 256 << 10},
	}
}

// crowdImage is the manifest of an image, of blobs that belong to no other one.
func crowdImage(image int) *proto.PutManifest {
	const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"
	var content strings.Builder
	content.WriteString(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[`)
	var blobs []*proto.Descriptor
	for n := range blobsPerImage {
		// The n-th of the next ten blobs of the repository.
		number := (image/crowdRepositories*blobsPerImage+n)*crowdRepositories + image%crowdRepositories
		blobs = append(blobs, &proto.Descriptor{MediaType: layerType, Digest: crowdBlob(number), Size: 30 << 20})
		fmt.Fprintf(&content, `{"mediaType":%q,"digest":%q,"size":%d},`, layerType, crowdBlob(number), 30<<20)
	}
	manifest := manifestOf(content.String())
	manifest.Blobs = blobs
	return &proto.PutManifest{Repository: crowdRepository(image), Manifest: manifest}
}
