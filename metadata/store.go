package metadata

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/proto"
)

// Log replicates commands. *consensus.Replica is one.
type Log interface {
	// Propose appends a command and returns what this cluster's state machine
	// answered, and the command's log index. consensus.ErrNoLeader says that the
	// command was not and will not be applied; any other error leaves that open.
	Propose(ctx context.Context, command []byte) (result []byte, logIndex uint64, err error)
	// ReadIndex returns once the local state machine has applied everything that
	// was acknowledged anywhere before the call.
	ReadIndex(ctx context.Context) error
}

// StoreConfig is how a Store behaves. Zero fields take the defaults.
type StoreConfig struct {
	// Logger receives what is worth knowing besides returned errors.
	Logger zerolog.Logger
	// Now is the clock that commands are stamped with. Default time.Now.
	Now func() time.Time
	// WriteTimeout bounds one write with all its retries. Default 10 s.
	WriteTimeout time.Duration
	// ReadTimeout bounds the wait for the read index. Default 10 s.
	ReadTimeout time.Duration
	// LocalReadAfter is how long a read by digest waits for the read index before
	// a record of the local state will do. Default 2 s.
	LocalReadAfter time.Duration
	// UploadTTL is how long an upload may rest. Default 24 h.
	UploadTTL time.Duration
	// FinishedTTL is how long a finished upload is remembered. Default 1 h.
	FinishedTTL time.Duration
	// BlobGrace is how long a blob without references keeps its extents, so that
	// running pulls can end. Default 1 h.
	BlobGrace time.Duration
	// ExpireInterval is the time between two rounds of expiry. Default 1 min.
	ExpireInterval time.Duration
}

// Store reads and changes the replicated state.
type Store struct{}

// NewStore returns the typed face of m. It starts nothing.
func NewStore(m *Machine, log Log, cfg StoreConfig) *Store { return &Store{} }

var errSkeleton = errors.ErrUnsupported

func (s *Store) Blob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	return nil, errSkeleton
}
func (s *Store) MountBlob(ctx context.Context, repository, from, digest string) error {
	return errSkeleton
}
func (s *Store) DeleteBlob(ctx context.Context, repository, digest string) error { return errSkeleton }
func (s *Store) CommitBlob(ctx context.Context, commit *proto.CommitBlob) error  { return errSkeleton }
func (s *Store) CreateUpload(ctx context.Context, repository string) (*proto.Upload, error) {
	return nil, errSkeleton
}
func (s *Store) Upload(ctx context.Context, repository, id string) (*proto.Upload, error) {
	return nil, errSkeleton
}
func (s *Store) ExtendUpload(ctx context.Context, extend *proto.ExtendUpload) error {
	return errSkeleton
}
func (s *Store) CancelUpload(ctx context.Context, repository, id string) error { return errSkeleton }
func (s *Store) Manifest(ctx context.Context, repository, digest string) (*proto.Manifest, error) {
	return nil, errSkeleton
}
func (s *Store) ManifestByTag(ctx context.Context, repository, tag string) (*proto.Manifest, error) {
	return nil, errSkeleton
}
func (s *Store) ManifestBlob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	return nil, errSkeleton
}
func (s *Store) PutManifest(ctx context.Context, put *proto.PutManifest) error { return errSkeleton }
func (s *Store) DeleteManifest(ctx context.Context, repository, digest string) error {
	return errSkeleton
}
func (s *Store) DeleteTag(ctx context.Context, repository, tag string) error { return errSkeleton }
func (s *Store) Tags(ctx context.Context, repository, after string, limit int) (tags []string, more bool, err error) {
	return nil, false, errSkeleton
}
func (s *Store) Repositories(ctx context.Context, after string, limit int) (repositories []string, more bool, err error) {
	return nil, false, errSkeleton
}
func (s *Store) Referrers(ctx context.Context, repository, subject string) ([]*proto.Manifest, error) {
	return nil, errSkeleton
}
func (s *Store) Nodes(ctx context.Context) ([]*proto.Node, error) { return nil, errSkeleton }

// LocalNodes returns this node's view of all nodes, removed ones included,
// ordered by id, without waiting for anybody. The messages are shared: they
// must not be changed.
func (s *Store) LocalNodes() []*proto.Node { return nil }

// ClusterID returns the cluster's id as this node knows it, empty if none.
func (s *Store) ClusterID() string { return "" }

func (s *Store) InitCluster(ctx context.Context, clusterID string) error { return errSkeleton }
func (s *Store) PutNode(ctx context.Context, node *proto.Node, replacesID string) error {
	return errSkeleton
}
func (s *Store) SetNodeState(ctx context.Context, id string, state proto.NodeState) error {
	return errSkeleton
}
func (s *Store) LiveExtents(ctx context.Context, ids [][]byte) ([]bool, error) {
	return nil, errSkeleton
}
func (s *Store) Census(ctx context.Context, unhealthy func(nodeID string) bool) (whole, degraded, lost uint64, err error) {
	return 0, 0, 0, errSkeleton
}

// CheckpointReport is what one node said of its newest checkpoint.
type CheckpointReport struct {
	LogIndex uint64
	Hash     []byte
}

// Checkpoint has every node compare its state at its newest checkpoint with what the
// majority of members had there, and starts a new one. The leader calls it now
// and then with the reports of all nodes that answer, itself included.
func (s *Store) Checkpoint(ctx context.Context, members int, reports []CheckpointReport) error {
	return errSkeleton
}

// Run drops what is over its time, round by round, until ctx ends. One node is
// enough: the leader.
func (s *Store) Run(ctx context.Context) error { return errSkeleton }
