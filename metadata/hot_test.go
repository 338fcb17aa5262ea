package metadata

import (
	"fmt"
	"testing"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/node/alloctest"
	"github.com/atollregistry/atoll/proto"
)

func BenchmarkHot(b *testing.B)    { alloctest.Bench(b, hotFunctions) }
func TestAllocations(t *testing.T) { alloctest.Check(t, hotFunctions) }

// hotFunctions are those of every pull and push.
func hotFunctions(t testing.TB) []alloctest.Function {
	s, log := openStore(t, StoreConfig{})
	log.machine.db.NoSync = true // What is counted does not depend on the disk.
	c := newCrowd(t, s, log)
	c.putBlobs(20*crowdRepositories, fillBatch)
	c.putImages(2 * crowdRepositories)
	return append(append(hotCommands(t), hotApply(t, c)...), hotReads(t, c)...)
}

// hotCommands is the way of a command into the log and out of it.
func hotCommands(t testing.TB) []alloctest.Function {
	command := &proto.Command{RequestId: requestID(1), TimeUnixMs: 1, NotAfterIndex: 1, Body: &proto.Command_PutManifest{PutManifest: crowdImage(1)}}
	encoded, err := encodeCommand(command)
	if err != nil {
		t.Fatal(err)
	}
	return []alloctest.Function{
		{Name: "encode PutManifest of 10 layers", Allocs: 2, Call: func() {
			if _, err := encodeCommand(command); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "decode PutManifest of 10 layers", Allocs: 45, Call: func() {
			if _, err := decodeCommand(encoded); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// hotBatch is how many commands are applied together. The counts include encoding each
// of them, and the one commit, and are rounded up to tens: how pages split differs a
// little from run to run.
const hotBatch = 16

// hotApply is the way of committed commands into the state, as the node's disk has it.
func hotApply(t testing.TB, c *crowd) []alloctest.Function {
	apply := func(next func(i int) *proto.Command) func() {
		return func() {
			batch := make([]consensus.Entry, hotBatch)
			for i := range batch {
				c.log.last++
				command := next(int(c.log.last))
				command.RequestId, command.TimeUnixMs = requestID(c.log.last), c.nowMS
				batch[i] = entryOf(t, c.log.last, command)
			}
			results, err := c.log.machine.Apply(batch)
			if err != nil {
				t.Fatal(err)
			}
			for _, encoded := range results {
				if len(encoded) > 0 { // a refusal
					t.Fatalf("%q", encoded)
				}
			}
		}
	}
	image := crowdImage(0)
	pushes := 0
	return []alloctest.Function{
		{Name: "apply 16 PutManifest, each moves a tag", Allocs: 3690, Call: apply(func(i int) *proto.Command {
			image.Tags = []string{crowdTag(i%2*crowdRepositories, i%tagsPerImage)}
			return &proto.Command{Body: &proto.Command_PutManifest{PutManifest: image}}
		})},
		{Name: "apply 16 PutManifest of new manifests", Allocs: 8330, Call: apply(func(i int) *proto.Command {
			put := &proto.PutManifest{Repository: image.GetRepository(), Manifest: manifestOf(fmt.Sprint("new ", i)), Tags: []string{"latest"}}
			put.Manifest.Blobs = image.GetManifest().GetBlobs()
			return &proto.Command{Body: &proto.Command_PutManifest{PutManifest: put}}
		})},
		{Name: "apply 16 CommitBlob", Allocs: 5210, Call: apply(func(i int) *proto.Command {
			return &proto.Command{Body: &proto.Command_CommitBlob{CommitBlob: &proto.CommitBlob{
				Repository: "app", Digest: crowdBlob(1e9 + i), Size: 30 << 20, Extents: []*proto.Extent{crowdExtent(1e9 + i)},
			}}}
		})},
		{Name: "apply 16 ExtendUpload, each begins one", Allocs: 3990, Call: apply(func(int) *proto.Command {
			pushes++
			first := begin(uploadID(fmt.Sprint(pushes), "app", ""), "app", "", 0)
			first.GetExtendUpload().Extents = []*proto.Extent{crowdExtent(2e9 + pushes)}
			first.GetExtendUpload().HashStates = []*proto.HashState{{Algorithm: "sha256", State: make([]byte, 108)}}
			return first
		})},
		{Name: "apply 16 MountBlob", Allocs: 3040, Call: apply(func(i int) *proto.Command {
			return &proto.Command{Body: &proto.Command_MountBlob{MountBlob: &proto.MountBlob{
				Repository: fmt.Sprint("app-", i), From: crowdRepository(0), Digest: crowdBlob(0),
			}}}
		})},
	}
}

// hotReads are what requests ask of the state, the read index aside.
func hotReads(t testing.TB, c *crowd) []alloctest.Function {
	ctx := t.Context()
	repository, tag, digest := crowdRepository(0), crowdTag(0, 3), crowdImage(0).GetManifest().GetDigest()
	read := func(read func() error) func() {
		return func() {
			if err := read(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return []alloctest.Function{
		{Name: "manifest of 10 layers by tag", Allocs: 67, Call: read(func() error {
			_, err := c.store.ManifestByTag(ctx, repository, tag)
			return err
		})},
		{Name: "manifest of 10 layers by digest", Allocs: 58, Call: read(func() error {
			_, err := c.store.Manifest(ctx, repository, digest)
			return err
		})},
		{Name: "blob of one extent", Allocs: 49, Call: read(func() error {
			_, err := c.store.Blob(ctx, repository, crowdBlob(0))
			return err
		})},
		{Name: "page of 10 tags", Allocs: 30, Call: read(func() error {
			_, _, err := c.store.Tags(ctx, repository, "", 10)
			return err
		})},
	}
}
