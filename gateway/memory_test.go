package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// memoryMetadata is Metadata in maps, with the rules of the state machine that
// the gateway relies on.
type memoryMetadata struct {
	mu           sync.Mutex
	repositories map[string]*memoryRepository
	blobs        map[string]*proto.Blob
	uploads      map[string]*proto.Upload
	unrecorded   map[string]bool // uploads without a record
	created      int
	// calls counts calls by method.
	calls map[string]int
	// fail, if set, may make a method fail before it does anything.
	fail map[string]error
	// keys are the signing keys that the node knows, newKeys those that it gets to
	// know when it catches up.
	keys, newKeys []*proto.SigningKey
}

type memoryRepository struct {
	links     map[string]bool
	manifests map[string]*proto.Manifest
	stored    map[string]*proto.Blob // of manifests stored as blobs
	tags      map[string]string
}

func newMemoryMetadata() *memoryMetadata {
	return &memoryMetadata{
		repositories: map[string]*memoryRepository{}, blobs: map[string]*proto.Blob{}, uploads: map[string]*proto.Upload{}, unrecorded: map[string]bool{},
		calls: map[string]int{}, fail: map[string]error{},
	}
}

// enter locks and counts; the caller unlocks.
func (m *memoryMetadata) enter(method string) (unlock func(), err error) {
	m.mu.Lock()
	m.calls[method]++
	if err := m.fail[method]; err != nil {
		m.mu.Unlock()
		return nil, err
	}
	return m.mu.Unlock, nil
}

// errStale makes a read be answered as without a quorum.
var errStale = errors.New("answer without a quorum")

// enterContent is enter for a read that may be stale.
func (m *memoryMetadata) enterContent(ctx context.Context, method string) (unlock func(), err error) {
	unlock, err = m.enter(method)
	if errors.Is(err, errStale) {
		metadata.NoteStale(ctx)
		m.mu.Lock()
		return m.mu.Unlock, nil
	}
	return unlock, err
}

func (m *memoryMetadata) count(method string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[method]
}

func (m *memoryMetadata) setFailure(method string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[method] = err
}

func (m *memoryMetadata) upload(id string) *proto.Upload {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.uploads[id]
}

func (m *memoryMetadata) repository(name string) (*memoryRepository, error) {
	if r := m.repositories[name]; r != nil {
		return r, nil
	}
	return nil, metadata.ErrRepositoryUnknown
}

func (m *memoryMetadata) make(name string) *memoryRepository {
	if m.repositories[name] == nil {
		m.repositories[name] = &memoryRepository{
			links: map[string]bool{}, manifests: map[string]*proto.Manifest{}, stored: map[string]*proto.Blob{}, tags: map[string]string{},
		}
	}
	return m.repositories[name]
}

func (m *memoryMetadata) linked(repository, digest string) (*proto.Blob, error) {
	r, err := m.repository(repository)
	if err != nil {
		return nil, err
	}
	if !r.links[digest] {
		return nil, metadata.ErrBlobUnknown
	}
	return m.blobs[digest], nil
}

func (m *memoryMetadata) Blob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	unlock, err := m.enterContent(ctx, "Blob")
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.linked(repository, digest)
}

func (m *memoryMetadata) RetainBlob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	unlock, err := m.enterContent(ctx, "RetainBlob")
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.linked(repository, digest)
}

func (m *memoryMetadata) BlobRepositories(_ context.Context, digest, after string, limit int) ([]string, bool, error) {
	unlock, err := m.enter("BlobRepositories")
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	having := map[string]bool{}
	for name, repository := range m.repositories {
		if repository.links[digest] {
			having[name] = true
		}
	}
	repositories, more := pageOf(having, after, limit)
	return repositories, more, nil
}

func (m *memoryMetadata) MountBlob(_ context.Context, repository, from, digest string) error {
	unlock, err := m.enter("MountBlob")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := m.linked(from, digest); err != nil {
		return err
	}
	m.make(repository).links[digest] = true
	return nil
}

func (m *memoryMetadata) DeleteBlob(_ context.Context, repository, digest string) error {
	unlock, err := m.enter("DeleteBlob")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := m.linked(repository, digest); err != nil {
		return err
	}
	delete(m.repositories[repository].links, digest)
	return nil
}

func (m *memoryMetadata) CommitBlob(_ context.Context, c *proto.CommitBlob) error {
	unlock, err := m.enter("CommitBlob")
	if err != nil {
		return err
	}
	defer unlock()
	extents := slices.Clone(c.Extents)
	if c.UploadId != "" {
		upload := m.uploads[c.UploadId]
		if upload == nil || upload.Repository != c.Repository {
			return metadata.ErrUploadUnknown
		}
		if upload.FinishedDigest == c.Digest {
			return nil
		}
		if upload.FinishedDigest != "" {
			return metadata.ErrUploadFinished
		}
		if upload.Size != c.ExpectedSize {
			return &metadata.UploadSizeError{Size: upload.Size}
		}
		if err := m.begin(upload, c.Begin); err != nil {
			return err
		}
		extents = append(slices.Clone(upload.Extents), extents...)
		upload.FinishedDigest = c.Digest
	} else if c.ExpectedSize != 0 {
		return metadata.ErrInvalid
	}
	if sumSizes(extents) != c.Size {
		return fmt.Errorf("extents have %d bytes, blob %d: %w", sumSizes(extents), c.Size, metadata.ErrInvalid)
	}
	if m.blobs[c.Digest] == nil {
		m.blobs[c.Digest] = &proto.Blob{Digest: c.Digest, Size: c.Size, Extents: extents}
	}
	m.make(c.Repository).links[c.Digest] = true
	return nil
}

func sumSizes(extents []*proto.Extent) (size uint64) {
	for _, extent := range extents {
		size += extent.Size
	}
	return size
}

func (m *memoryMetadata) NewUpload(_ context.Context, repository, owner string, ownerLimit int) (string, error) {
	unlock, err := m.enter("NewUpload")
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := m.mayHaveMore(owner, ownerLimit); err != nil {
		return "", err
	}
	m.created++
	upload := &proto.Upload{Id: fmt.Sprintf("upload-%d", m.created), Repository: repository, Owner: owner}
	m.uploads[upload.Id], m.unrecorded[upload.Id] = upload, true
	return upload.Id, nil
}

func (m *memoryMetadata) CheckUploads(owner string, ownerLimit int) error {
	unlock, err := m.enter("CheckUploads")
	if err != nil {
		return err
	}
	defer unlock()
	return m.mayHaveMore(owner, ownerLimit)
}

func (m *memoryMetadata) mayHaveMore(owner string, limit int) error {
	open := 0
	for _, upload := range m.uploads {
		if !m.unrecorded[upload.Id] && upload.Owner == owner && upload.FinishedDigest == "" {
			open++
		}
	}
	if owner != "" && limit > 0 && open >= limit {
		return metadata.ErrTooManyUploads
	}
	return nil
}

// begin gives an upload its record.
func (m *memoryMetadata) begin(upload *proto.Upload, begin *proto.UploadBegin) error {
	if !m.unrecorded[upload.Id] {
		return nil
	}
	if begin == nil || begin.Owner != upload.Owner {
		return metadata.ErrUploadUnknown
	}
	if err := m.mayHaveMore(begin.Owner, int(begin.OwnerLimit)); err != nil {
		return err
	}
	delete(m.unrecorded, upload.Id)
	return nil
}

func copyUpload(u *proto.Upload) *proto.Upload {
	return &proto.Upload{
		Id: u.Id, Repository: u.Repository, Size: u.Size, FinishedDigest: u.FinishedDigest, Owner: u.Owner,
		Extents: slices.Clone(u.Extents), HashStates: slices.Clone(u.HashStates),
	}
}

func (m *memoryMetadata) find(repository, id string) (*proto.Upload, error) {
	upload := m.uploads[id]
	if upload == nil || upload.Repository != repository {
		return nil, metadata.ErrUploadUnknown
	}
	return upload, nil
}

func (m *memoryMetadata) Upload(_ context.Context, repository, id, owner string) (*proto.Upload, error) {
	unlock, err := m.enter("Upload")
	if err != nil {
		return nil, err
	}
	defer unlock()
	upload, err := m.find(repository, id)
	if err == nil && m.unrecorded[id] && upload.Owner != owner {
		err = metadata.ErrUploadUnknown
	}
	if err != nil {
		return nil, err
	}
	return copyUpload(upload), nil
}

func (m *memoryMetadata) ExtendUpload(_ context.Context, e *proto.ExtendUpload) error {
	unlock, err := m.enter("ExtendUpload")
	if err != nil {
		return err
	}
	defer unlock()
	upload, err := m.find(e.Repository, e.Id)
	if err == nil {
		err = m.begin(upload, e.Begin)
	}
	if err != nil {
		return err
	}
	if upload.FinishedDigest != "" {
		return metadata.ErrUploadFinished
	}
	if upload.Size != e.ExpectedSize {
		return &metadata.UploadSizeError{Size: upload.Size}
	}
	upload.Extents = append(upload.Extents, e.Extents...)
	upload.Size += sumSizes(e.Extents)
	upload.HashStates = e.HashStates
	return nil
}

func (m *memoryMetadata) CancelUpload(_ context.Context, repository, id, _ string) error {
	unlock, err := m.enter("CancelUpload")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := m.find(repository, id); err != nil {
		return err
	}
	delete(m.uploads, id)
	return nil
}

func pageOf[V any](entries map[string]V, after string, limit int) (names []string, more bool) {
	for name := range entries {
		if name > after {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	if len(names) > limit {
		return names[:limit], true
	}
	return names, false
}

func (m *memoryMetadata) Tags(ctx context.Context, repository, after string, limit int) ([]string, bool, error) {
	unlock, err := m.enterContent(ctx, "Tags")
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	r, err := m.repository(repository)
	if err != nil {
		return nil, false, err
	}
	tags, more := pageOf(r.tags, after, limit)
	return tags, more, nil
}

func (m *memoryMetadata) Repositories(ctx context.Context, after string, limit int) ([]string, bool, error) {
	unlock, err := m.enterContent(ctx, "Repositories")
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	repositories, more := pageOf(m.repositories, after, limit)
	return repositories, more, nil
}

func (m *memoryMetadata) Referrers(ctx context.Context, repository, subject, after string, limit int) ([]*proto.Manifest, bool, error) {
	unlock, err := m.enterContent(ctx, "Referrers")
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	r, err := m.repository(repository)
	if err != nil {
		return nil, false, err
	}
	referring := map[string]*proto.Manifest{}
	for digest, manifest := range r.manifests {
		if manifest.Subject == subject {
			referring[digest] = manifest
		}
	}
	var referrers []*proto.Manifest
	digests, more := pageOf(referring, after, limit)
	for _, digest := range digests {
		referrers = append(referrers, referring[digest])
	}
	return referrers, more, nil
}

func (m *memoryMetadata) SigningKeys() ([]*proto.SigningKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys, nil
}

func (m *memoryMetadata) CatchUp(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = append(m.newKeys, m.keys...)
	m.newKeys = nil
	return nil
}
