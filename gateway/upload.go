package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// startUpload answers POST to where uploads start: a mount, a blob pushed in this
// one request, or a new upload.
func (g *gateway) startUpload(ctx context.Context, x *exchange) error {
	if algorithm := x.query.Get("digest-algorithm"); algorithm != "" && newHash(algorithm) == nil {
		return refuse(errDigestInvalid, "the digest algorithm is not supported", map[string]string{"algorithm": algorithm})
	}
	if mount := x.query.Get("mount"); mount != "" {
		mounted, err := g.mountBlob(ctx, x, mount)
		if err != nil {
			return err
		}
		if x.mounted = mounted; mounted {
			return x.created(blobPath(x.repository, mount), mount)
		}
	}
	if x.query.Get("digest") != "" {
		return g.pushWhole(ctx, x)
	}
	id, err := g.metadata.NewUpload(ctx, x.repository, g.owner(x), g.cfg.UploadsPerAccount)
	if err != nil {
		return fmt.Errorf("start upload: %w", err)
	}
	x.setUpload(id, 0)
	return x.reply(http.StatusAccepted)
}

// mountBlob links a blob of another repository, or finds that it is here already.
// Whatever is missing or malformed is no error: the client then gets an upload,
// since containerd gives up a push whose mount was refused.
func (g *gateway) mountBlob(ctx context.Context, x *exchange, digest string) (mounted bool, err error) {
	if checkDigest(digest) != nil {
		return false, nil
	}
	// What may not be read is as good as missing.
	if from := x.query.Get("from"); validRepository(from) && g.mayPull(x, from) {
		err := g.metadata.MountBlob(ctx, x.repository, from, digest)
		if err == nil {
			x.mountedFrom = from
			return true, nil
		}
		if !isMissing(err) {
			return false, fmt.Errorf("mount blob %s from %s: %w", digest, from, err)
		}
	}
	_, err = g.metadata.RetainBlob(ctx, x.repository, digest)
	if err == nil {
		return true, nil
	}
	if !isMissing(err) {
		return false, fmt.Errorf("look up blob %s: %w", digest, err)
	}
	if x.query.Has("from") {
		return false, nil
	}
	return g.mountAny(ctx, x, digest)
}

// maxMountSources is how many repositories are looked at for one that a blob may be
// mounted from. A base image can be in thousands; then the client pushes it again,
// and nothing is stored twice.
const maxMountSources = 1000

// mountAny links a blob of any repository that may be read.
func (g *gateway) mountAny(ctx context.Context, x *exchange, digest string) (mounted bool, err error) {
	repositories, _, err := g.metadata.BlobRepositories(ctx, digest, "", maxMountSources)
	if err != nil {
		return false, fmt.Errorf("look up repositories of blob %s: %w", digest, err)
	}
	i := slices.IndexFunc(repositories, func(from string) bool { return g.mayPull(x, from) })
	if i < 0 {
		return false, nil
	}
	err = g.metadata.MountBlob(ctx, x.repository, repositories[i], digest)
	if err != nil && !isMissing(err) { // It may have been deleted there since.
		return false, fmt.Errorf("mount blob %s from %s: %w", digest, repositories[i], err)
	}
	if err != nil {
		return false, nil
	}
	x.mountedFrom = repositories[i]
	return true, nil
}

func isMissing(err error) bool {
	return errors.Is(err, metadata.ErrBlobUnknown) || errors.Is(err, metadata.ErrRepositoryUnknown)
}

// uploadStatus answers GET and HEAD of an upload: how far it has come.
func (g *gateway) uploadStatus(ctx context.Context, x *exchange) error {
	upload, err := g.openUpload(ctx, x)
	if err != nil {
		return err
	}
	x.setUpload(upload.GetId(), upload.GetSize())
	return x.reply(http.StatusNoContent)
}

// findUpload finds an upload, finished or not. It belongs to whoever began it: for
// others there is none.
func (g *gateway) findUpload(ctx context.Context, x *exchange) (*proto.Upload, error) {
	owner := g.owner(x)
	begunBy := owner
	if x.outlived {
		begunBy = "" // nobody here: an id alone is no upload
	}
	upload, err := g.metadata.Upload(ctx, x.repository, x.reference, begunBy)
	if err != nil {
		return nil, fmt.Errorf("look up upload %s: %w", x.reference, err)
	}
	if g.auth != nil && upload.GetOwner() != owner {
		return nil, fmt.Errorf("look up upload %s, which is somebody else's: %w", x.reference, metadata.ErrUploadUnknown)
	}
	return upload, nil
}

// openUpload finds an upload that is still in progress.
func (g *gateway) openUpload(ctx context.Context, x *exchange) (*proto.Upload, error) {
	upload, err := g.findUpload(ctx, x)
	if err != nil {
		return nil, err
	}
	if upload.GetFinishedDigest() != "" {
		return nil, fmt.Errorf("look up upload %s: %w", x.reference, metadata.ErrUploadFinished)
	}
	return upload, nil
}

// cancelUpload answers DELETE of an upload.
func (g *gateway) cancelUpload(ctx context.Context, x *exchange) error {
	if g.auth != nil {
		if _, err := g.findUpload(ctx, x); err != nil {
			return err
		}
	}
	if err := g.metadata.CancelUpload(ctx, x.repository, x.reference, g.owner(x)); err != nil {
		return fmt.Errorf("cancel upload %s: %w", x.reference, err)
	}
	return x.reply(http.StatusNoContent)
}

// extendUpload answers PATCH: more bytes for an upload. They count once they are
// durable and recorded, all of them or, after an error, those of whole extents.
func (g *gateway) extendUpload(ctx context.Context, x *exchange) error {
	upload, err := g.openUpload(ctx, x)
	if err != nil {
		return err
	}
	if err := x.checkChunk(upload); err != nil {
		return err
	}
	p := g.resumePush(x, upload)
	defer p.end()
	if upload.GetSize() == 0 {
		if err := g.metadata.CheckUploads(p.owner, p.ownerLimit); err != nil {
			return fmt.Errorf("extend upload %s: %w", p.uploadID, err)
		}
	}
	if err := g.receive(ctx, x, p); err != nil {
		return g.explainSize(x, err)
	}
	if err := g.recordTail(ctx, p); err != nil {
		return g.explainSize(x, err)
	}
	x.setUpload(upload.GetId(), p.progress.Size)
	return x.reply(http.StatusAccepted)
}

// checkChunk compares a request's Content-Range, if it has one, with the upload
// and with the length of the body.
func (x *exchange) checkChunk(upload *proto.Upload) error {
	header, single := one(x.r.Header.Values("Content-Range"))
	if single && header == "" {
		return nil
	}
	first, last, ok := parseContentRange(header)
	if !ok || !single {
		return refuse(errChunkMalformed, "Content-Range is not FIRST-LAST", map[string]string{"contentRange": header})
	}
	if first != upload.GetSize() {
		return x.outOfOrder(upload.GetSize())
	}
	length := last - first + 1
	if x.r.ContentLength >= 0 && uint64(x.r.ContentLength) != length {
		return refuse(errSizeInvalid, "Content-Range and Content-Length do not agree", nil)
	}
	x.body.announce(length)
	return nil
}

// outOfOrder refuses a chunk that does not begin where the upload ends, and says
// where that is. For an upload without bytes there is no way to say it: "0-0"
// would make regctl go on at byte 1.
func (x *exchange) outOfOrder(size uint64) error {
	x.setUpload(x.reference, size)
	if size == 0 {
		x.w.Header().Del("Range")
	}
	return refuse(errRangeInvalid, fmt.Sprintf("the upload has %d bytes", size), map[string]uint64{"size": size})
}

// explainSize adds to the error of a writer who lost against another one how far
// the upload has come, so that the client can go on from there.
func (g *gateway) explainSize(x *exchange, err error) error {
	var conflict *metadata.UploadSizeError
	if errors.As(err, &conflict) && x.operation == opUpload {
		x.setUpload(x.reference, conflict.Size)
		if conflict.Size == 0 {
			x.w.Header().Del("Range")
		}
	}
	return err
}

// finishUpload answers PUT: the last bytes of an upload, if any, and its digest.
func (g *gateway) finishUpload(ctx context.Context, x *exchange) error {
	digest, err := x.digestParameter()
	if err != nil {
		return err
	}
	upload, err := g.findUpload(ctx, x)
	if err != nil {
		return err
	}
	if finished := upload.GetFinishedDigest(); finished != "" {
		return g.finishAgain(ctx, x, finished == digest)
	}
	if err := x.checkChunk(upload); err != nil {
		return err
	}
	p := g.resumePush(x, upload)
	defer p.end()
	p.restartable = upload.GetSize() == 0 && x.r.Header.Get("Content-Range") == ""
	if err := g.finish(ctx, x, p, digest); err != nil {
		if p.uploadID != x.reference {
			g.abandon(ctx, p.repository, p.uploadID, p.owner)
		}
		if errors.Is(err, errDigestInvalid) || errors.Is(err, metadata.ErrUploadLost) {
			// Nobody can go on with an upload that has the wrong bytes, or lost some.
			g.abandon(ctx, x.repository, x.reference, p.owner)
		}
		return g.explainSize(x, err)
	}
	return x.created(blobPath(x.repository, digest), digest)
}

// finish takes what is left of a push and makes a blob of it.
func (g *gateway) finish(ctx context.Context, x *exchange, p *push, digest string) error {
	if err := p.prepareHash(digest); err != nil {
		return err
	}
	if !x.body.ended() {
		if err := g.receive(ctx, x, p); err != nil {
			return err
		}
	}
	return g.commit(ctx, p, digest)
}

// finishAgain answers a PUT that was carried out before: the client, or a
// balancer, did not get the reply and repeats it.
func (g *gateway) finishAgain(ctx context.Context, x *exchange, same bool) error {
	if !same {
		return fmt.Errorf("finish upload %s with another digest: %w", x.reference, metadata.ErrUploadFinished)
	}
	digest := x.query.Get("digest")
	if _, err := g.metadata.RetainBlob(ctx, x.repository, digest); err != nil {
		if isMissing(err) { // Deleted or lost since: the client has to push it again.
			return fmt.Errorf("finish upload %s again: %w", x.reference, metadata.ErrUploadFinished)
		}
		return fmt.Errorf("look up blob %s: %w", digest, err)
	}
	// Not every client reads a reply before it has sent everything.
	if err := x.discard(); err != nil {
		return err
	}
	return x.created(blobPath(x.repository, digest), digest)
}

// pushWhole answers POST with a digest: a blob in one request. An upload is
// recorded only if the blob is so large that it has parts to record on the way.
func (g *gateway) pushWhole(ctx context.Context, x *exchange) error {
	digest, err := x.digestParameter()
	if err != nil {
		return err
	}
	p := &push{repository: x.repository, owner: g.owner(x)}
	defer p.end()
	if err := g.finish(ctx, x, p, digest); err != nil {
		g.abandon(ctx, p.repository, p.uploadID, p.owner)
		return err
	}
	return x.created(blobPath(x.repository, digest), digest)
}

// abandonTime bounds the clean-up after a failed push.
const abandonTime = 5 * time.Second

// abandon drops an upload, if there is one, that nobody will go on with, even if
// the client is gone by now. If that fails, the upload expires.
func (g *gateway) abandon(ctx context.Context, repository, id, owner string) {
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
	defer cancel()
	if err := g.metadata.CancelUpload(ctx, repository, id, owner); err != nil {
		g.cfg.Logger.Debug().Err(err).Str("repository", repository).Str("upload", id).Msg("upload left to expire")
	}
}
