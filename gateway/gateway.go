// Package gateway speaks the OCI distribution protocol, version 2, over HTTP.
//
// A request goes one way: ServeHTTP (middleware.go) counts, logs and contains
// it; splitPath (route.go) says what it is about; a handler, named in the table
// below, does it and returns an error or nil; error.go alone turns errors into
// replies. The gateway keeps nothing between requests: any node may take any
// step of a push.
package gateway

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// BlobRecords says which blobs a repository has and where their bytes are.
// Reads see every write acknowledged before on any node; writes are durable in
// the cluster when they return. All may be called at once and repeated.
type BlobRecords interface {
	// Blob fails with ErrBlobUnknown or ErrRepositoryUnknown when the repository
	// has no such blob.
	Blob(ctx context.Context, repository, digest string) (*proto.Blob, error)
	// RetainBlob is Blob for an answer that a client will rely on: the blob stays
	// for hours though no manifest refers to it yet. One that is lost by the records
	// is unknown.
	RetainBlob(ctx context.Context, repository, digest string) (*proto.Blob, error)
	// BlobRepositories returns at most limit repositories that have the blob and
	// come after a name, in the order of their bytes, and whether there are more.
	BlobRepositories(ctx context.Context, digest, after string, limit int) (repositories []string, more bool, err error)
	// MountBlob links in repository what is linked in from, with the errors of
	// RetainBlob.
	MountBlob(ctx context.Context, repository, from, digest string) error
	// DeleteBlob takes the blob out of this repository only, with the errors of
	// Blob.
	DeleteBlob(ctx context.Context, repository, digest string) error
	// CommitBlob makes a blob of an upload, or of extents alone, and links it.
	// Fails with ErrUploadUnknown, ErrUploadSize, ErrUploadFinished, ErrUploadLost.
	CommitBlob(ctx context.Context, commit *proto.CommitBlob) error
}

// Uploads keeps how far pushes in progress have come, with the guarantees of
// BlobRecords.
type Uploads interface {
	// NewUpload returns the id of a new upload of size zero, for an owner, who may have
	// ownerLimit in progress; 0 for no limit. It has a record, and counts, from its first
	// bytes on. Fails with ErrTooManyUploads.
	NewUpload(ctx context.Context, repository, owner string, ownerLimit int) (id string, err error)
	// CheckUploads fails with ErrTooManyUploads if the owner is known to have that many.
	CheckUploads(owner string, ownerLimit int) error
	// Upload fails with ErrUploadUnknown, also for another repository's id. One without a
	// record is there for the owner who began it.
	Upload(ctx context.Context, repository, id, owner string) (*proto.Upload, error)
	// ExtendUpload adds durable extents if the upload still has the expected size.
	// With Begin it may have no record yet. Fails with ErrTooManyUploads, ErrUploadUnknown, ErrUploadSize, ErrUploadFinished.
	ExtendUpload(ctx context.Context, extend *proto.ExtendUpload) error
	// CancelUpload fails with ErrUploadUnknown.
	CancelUpload(ctx context.Context, repository, id, owner string) error
}

// Manifests keeps manifests, with the guarantees of BlobRecords.
type Manifests interface {
	// Manifest fails with ErrManifestUnknown or ErrRepositoryUnknown.
	Manifest(ctx context.Context, repository, digest string) (*proto.Manifest, error)
	// RetainManifest is to Manifest what RetainBlob is to Blob.
	RetainManifest(ctx context.Context, repository, digest string) (*proto.Manifest, error)
	// ManifestByTag fails with ErrTagUnknown or ErrRepositoryUnknown.
	ManifestByTag(ctx context.Context, repository, tag string) (*proto.Manifest, error)
	// ManifestBlob says where the bytes of a manifest are that is stored as a
	// blob, with the errors of Manifest.
	ManifestBlob(ctx context.Context, repository, digest string) (*proto.Blob, error)
	// PutManifest stores a manifest and moves tags to it in one step. Fails with
	// ErrReferenceUnknown when blobs that it needs, or manifests that put requires,
	// are not in the repository, and with ErrPrecondition.
	PutManifest(ctx context.Context, put *proto.PutManifest) error
	// DeleteManifest removes the manifest and every tag that points to it, with
	// the errors of Manifest, and ErrPrecondition unless what is wanted holds of
	// the manifest; nil wants nothing.
	DeleteManifest(ctx context.Context, repository, digest string, wanted *proto.Precondition) error
}

// Lists answers what there is, in the order of the bytes of names.
type Lists interface {
	// Tags returns at most limit tags that come after a name, which need not
	// exist, and whether there are more. Fails with ErrRepositoryUnknown.
	Tags(ctx context.Context, repository, after string, limit int) (tags []string, more bool, err error)
	// DeleteTag removes a tag and nothing else. Fails with ErrTagUnknown,
	// ErrRepositoryUnknown, or ErrPrecondition.
	DeleteTag(ctx context.Context, repository, tag string, wanted *proto.Precondition) error
	// Repositories is as Tags.
	Repositories(ctx context.Context, after string, limit int) (repositories []string, more bool, err error)
	// Referrers returns at most limit manifests whose subject is the given digest
	// and that come after another, without their content, in the order of digests,
	// and whether there are more. The subject need not exist; an unknown repository
	// may be an ErrRepositoryUnknown.
	Referrers(ctx context.Context, repository, subject, after string, limit int) (referrers []*proto.Manifest, more bool, err error)
}

// Metadata is the cluster's replicated metadata. Beside the errors named, every
// method can fail with ErrUnavailable, every write with ErrOutcomeUnknown. A read
// by digest without a quorum may return what was deleted; it calls
// metadata.NoteStale then.
// *metadata.Store is one.
type Metadata interface {
	BlobRecords
	Uploads
	Manifests
	Lists
	SigningKeys
}

// Blobs keeps the bytes of blobs. *blobstore.Store is one.
type Blobs interface {
	// Append stores what it reads from r, up to its end, behind from.Size.
	// Extents that fill up on the way are handed to record once they are durable;
	// the last ones, and without record all of them, are returned as tail, durable
	// but not recorded: their first byte is byte tailFrom of the blob. After an error nothing counts that was
	// not recorded. An error of r or record comes back wrapped, and r is not read
	// after Append returned.
	Append(ctx context.Context, from blobstore.Progress, r io.Reader, record func(ctx context.Context, done blobstore.Recorded) error) (
		to blobstore.Progress, tail []*proto.Extent, tailFrom uint64, err error)
	// Pull is Read for a client. A worthy blob is kept whole on this node; others may be if they are
	// read often. The reader may have a way of its own to write to what has SendFile.
	Pull(ctx context.Context, digest string, extents []*proto.Extent, offset, length uint64, worthy bool) (io.ReadCloser, error)
	// Read opens length bytes, from offset on, of the blob made of extents. What
	// is read is verified, or ends in an error.
	Read(ctx context.Context, extents []*proto.Extent, offset, length uint64) (io.ReadCloser, error)
}

// handler does what one request asks for. An error before the first byte of a
// reply becomes the reply; after that it ends the connection.
type handler func(ctx context.Context, x *exchange) error

// gateway is the http.Handler that New returns.
type gateway struct {
	cfg      Config
	metadata Metadata
	blobs    Blobs
	metrics  *metrics
	// handlers has what to do for each operation and method.
	handlers map[operation]map[string]handler

	uploads   *limiter // requests that send blob bytes
	pulls     *limiter // requests that receive blob bytes
	manifests *limiter // bytes of manifests held in memory while they are pushed
	// requests bounds the requests of one client; nil for no bound.
	requests *requestRate
	// clients bounds the requests of one client that run at once; nil for no bound.
	clients *clientLimit
	// buffers are copyBytes long, for sending blobs.
	buffers sync.Pool
	now     func() time.Time
	// auth finds out who asks; nil if nobody logs in.
	auth *auth
	// popularity counts what would be redirected.
	popularity *Popularity
}

// copyBytes is how much of a blob is sent at a time. One buffer is held by each
// running pull, so that it must not be large.
const copyBytes = 64 << 10

// New returns the registry's HTTP handler. It starts nothing. Zero fields of cfg
// take the defaults.
func New(cfg Config, metadata Metadata, blobs Blobs) http.Handler {
	cfg = cfg.withDefaults()
	g := &gateway{cfg: cfg, metadata: metadata, blobs: blobs, metrics: newMetrics(cfg.Metrics, cfg.Logger), now: time.Now, popularity: NewPopularity()}
	g.uploads = newLimiter(int64(cfg.MaxConcurrentUploads), cfg.LimitWait, errUploadsBusy, g.metrics.limit("uploads"))
	g.pulls = newLimiter(int64(cfg.MaxConcurrentPulls), cfg.LimitWait, errPullsBusy, g.metrics.limit("pulls"))
	g.manifests = newLimiter(cfg.ManifestBufferBytes, cfg.LimitWait, errUploadsBusy, g.metrics.limit("manifest_bytes"))
	g.requests = newRequestRate(cfg.RequestsPerSecond, cfg.RequestBurst, g.metrics.limit("requests"))
	g.clients = newClientLimit(cfg.RequestsPerClient, cfg.LimitWait, g.metrics.limit("client_requests"))
	g.buffers.New = func() any { buffer := make([]byte, copyBytes); return &buffer }
	g.handlers = map[operation]map[string]handler{
		opBase:      {http.MethodGet: g.base, http.MethodHead: g.base},
		opCatalog:   {http.MethodGet: g.listRepositories, http.MethodHead: g.listRepositories},
		opTags:      {http.MethodGet: g.listTags, http.MethodHead: g.listTags},
		opReferrers: {http.MethodGet: g.listReferrers, http.MethodHead: g.listReferrers},
		opBlob:      {http.MethodGet: g.getBlob, http.MethodHead: g.getBlob, http.MethodDelete: g.deleteBlob},
		opUploads:   {http.MethodPost: g.startUpload},
		opUpload: {
			http.MethodGet: g.uploadStatus, http.MethodHead: g.uploadStatus,
			http.MethodPatch: g.extendUpload, http.MethodPut: g.finishUpload, http.MethodDelete: g.cancelUpload,
		},
		opManifest: {
			http.MethodGet: g.getManifest, http.MethodHead: g.getManifest,
			http.MethodPut: g.putManifest, http.MethodDelete: g.deleteManifest,
		},
	}
	if cfg.Auth != nil {
		g.auth = newAuth(*cfg.Auth, g.metrics, func() time.Time { return g.now() })
		g.handlers[opToken] = map[string]handler{http.MethodGet: g.getToken, http.MethodPost: g.postToken}
	}
	return g
}

// base answers the question whether this is a registry.
func (g *gateway) base(_ context.Context, x *exchange) error {
	return x.replyJSON(http.StatusOK, "application/json", struct{}{})
}
