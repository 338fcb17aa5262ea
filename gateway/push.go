package gateway

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// push is an upload as one request sees it: what is recorded, and what is durable
// but not recorded yet.
type push struct {
	repository string
	// owner is whom an upload belongs to that is begun on the way.
	owner string
	// ownerLimit is how many uploads the owner may have in progress, 0 for no bound.
	ownerLimit int
	// uploadID is empty for a blob pushed in one request, until there is a record to extend.
	uploadID string
	// restartable is the upload of a client that sends everything in its last step.
	// If that breaks off, the client repeats it from the first byte (containerd
	// does), so that nothing may be recorded in that upload on the way: a large
	// blob gets an upload of its own.
	restartable bool
	progress    blobstore.Progress
	// recorded are the extents in the upload's record.
	recorded []*proto.Extent
	// turn gives back the push's place among those that send bytes; nil as long as it has none.
	turn func()
	// tail are durable extents that no record names; they begin at byte tailFrom.
	tail     []*proto.Extent
	tailFrom uint64
}

// resumePush takes up an upload where its record says it is.
func (g *gateway) resumePush(x *exchange, upload *proto.Upload) *push {
	return &push{
		repository: x.repository,
		owner:      g.owner(x),
		ownerLimit: g.cfg.UploadsPerAccount,
		uploadID:   upload.GetId(),
		progress:   blobstore.Progress{UploadID: upload.GetId(), Size: upload.GetSize(), Hashes: upload.GetHashStates()},
		recorded:   slices.Clip(upload.GetExtents()),
		tailFrom:   upload.GetSize(),
	}
}

// prepareHash sees to it that bytes still to come are hashed as the digest wants
// it. Only from the first byte on: an upload that was begun without is read again
// in the end.
func (p *push) prepareHash(digest string) error {
	algorithm, _, _ := splitDigest(digest)
	if p.progress.Size > 0 || algorithm == sha256Algorithm {
		return nil
	}
	// SHA-256 is always kept.
	p.progress.Hashes = nil
	for _, name := range []string{sha256Algorithm, algorithm} {
		state, err := newHash(name).(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		p.progress.Hashes = append(p.progress.Hashes, &proto.HashState{Algorithm: name, State: state})
	}
	return nil
}

// takeTurn waits until few enough pushes are under way, unless this one is. Its turn lasts until its end:
// what is inline is in memory until it is recorded.
func (g *gateway) takeTurn(ctx context.Context, p *push) (err error) {
	if p.turn == nil {
		p.turn, err = g.uploads.acquire(ctx, 1)
	}
	return err
}

// end gives the turn back.
func (p *push) end() {
	if p.turn != nil {
		p.turn()
	}
}

// receive stores the request's body behind what the push has. Extents that fill
// up are recorded at once, so that nothing old waits unrecorded for the sweep.
func (g *gateway) receive(ctx context.Context, x *exchange, p *push) error {
	if err := g.takeTurn(ctx, p); err != nil {
		return err
	}
	record := func(ctx context.Context, done blobstore.Recorded) error {
		if err := g.record(ctx, p, done.ExpectedSize, done.Extents, done.Progress.Hashes); err != nil {
			return err
		}
		p.recorded = append(p.recorded, done.Extents...)
		return nil
	}
	progress, tail, tailFrom, err := g.blobs.Append(ctx, p.progress, x.body, record)
	if bodyErr := x.body.failed(); bodyErr != nil {
		return bodyErr
	}
	if err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	x.upload = p.uploadID
	p.progress, p.tail, p.tailFrom = progress, tail, tailFrom
	return nil
}

// record extends the upload's record, and makes one if there is none that may be
// extended.
func (g *gateway) record(ctx context.Context, p *push, expectedSize uint64, extents []*proto.Extent, hashes []*proto.HashState) error {
	if p.uploadID == "" || p.restartable {
		id, err := g.metadata.NewUpload(ctx, p.repository, p.owner, 0)
		if err != nil {
			return fmt.Errorf("start upload: %w", err)
		}
		p.uploadID, p.restartable, p.ownerLimit = id, false, 0
	}
	err := g.metadata.ExtendUpload(ctx, &proto.ExtendUpload{
		Id: p.uploadID, Repository: p.repository, ExpectedSize: expectedSize, Extents: extents, HashStates: hashes,
		Begin: p.begin(expectedSize, p.ownerLimit),
	})
	if err != nil {
		return fmt.Errorf("extend upload %s: %w", p.uploadID, err)
	}
	return nil
}

// begin lets the push's upload have its first record, if it has no bytes yet.
func (p *push) begin(size uint64, ownerLimit int) *proto.UploadBegin {
	if size > 0 || p.uploadID == "" {
		return nil
	}
	return &proto.UploadBegin{Owner: p.owner, OwnerLimit: uint32(ownerLimit)}
}

// recordTail records what is durable and not recorded yet.
func (g *gateway) recordTail(ctx context.Context, p *push) error {
	if len(p.tail) == 0 {
		return nil
	}
	if err := g.record(ctx, p, p.tailFrom, p.tail, p.progress.Hashes); err != nil {
		return err
	}
	p.recorded, p.tail, p.tailFrom = append(p.recorded, p.tail...), nil, p.progress.Size
	return nil
}

// commit makes a blob of the push if its bytes have the digest.
func (g *gateway) commit(ctx context.Context, p *push, digest string) error {
	computed, err := g.computeDigest(ctx, p, digest)
	if err != nil {
		return err
	}
	if computed != digest {
		return refuse(errDigestInvalid, "the content has another digest", map[string]string{"digest": digest, "computed": computed})
	}
	err = g.metadata.CommitBlob(ctx, &proto.CommitBlob{
		Repository: p.repository, Digest: digest, Size: p.progress.Size,
		UploadId: p.uploadID, ExpectedSize: p.tailFrom, Extents: p.tail,
		Begin: p.begin(p.tailFrom, 0), // It is over with that, and not one more in progress.
	})
	if err != nil {
		return fmt.Errorf("commit blob %s: %w", digest, err)
	}
	return nil
}

// computeDigest returns the digest of everything pushed, by the algorithm of the
// digest that the client gave.
func (g *gateway) computeDigest(ctx context.Context, p *push, digest string) (string, error) {
	algorithm, _, _ := splitDigest(digest)
	computed, err := p.progress.Digest(algorithm)
	if err == nil || algorithm == sha256Algorithm {
		return computed, err
	}
	if !errors.Is(err, blobstore.ErrHashState) {
		return "", err
	}
	return g.hashStored(ctx, p, algorithm)
}

// hashStored hashes what was pushed by reading it again. That is for the clients
// that name an algorithm other than SHA-256 only in the end. It may take longer than
// the sweep spares shards that no record names, so all is on record before.
func (g *gateway) hashStored(ctx context.Context, p *push, algorithm string) (string, error) {
	if err := g.recordTail(ctx, p); err != nil {
		return "", err
	}
	if err := g.takeTurn(ctx, p); err != nil {
		return "", err
	}
	reader, err := g.blobs.Read(ctx, p.recorded, 0, p.progress.Size)
	if err != nil {
		return "", fmt.Errorf("open upload %s: %w", p.uploadID, err)
	}
	buffer := g.buffers.Get().(*[]byte)
	defer g.buffers.Put(buffer)
	running := newHash(algorithm)
	n, err := io.CopyBuffer(running, reader, *buffer)
	_ = reader.Close() // Nothing to say about what was read.
	if err != nil {
		return "", fmt.Errorf("read upload %s: %w", p.uploadID, err)
	}
	if uint64(n) != p.progress.Size {
		return "", fmt.Errorf("read upload %s: %d bytes of %d: %w", p.uploadID, n, p.progress.Size, io.ErrUnexpectedEOF)
	}
	return formatDigest(algorithm, running), nil
}
