package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// Log replicates commands. *consensus.Replica is one.
type Log interface {
	// Propose appends a command and returns what the state machine answered, and
	// the command's log index. consensus.ErrNoLeader says that the command was not
	// and will not be applied; any other error leaves that open.
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
	// WriteTimeout bounds one write with all its retries. Default 20 s, so that clients
	// do not see an election, nor two. While there is no leader a write that
	// is not in the log is given up after the log's own bound; what takes longer is one whose outcome is unknown: to give that up
	// costs a client its push.
	WriteTimeout time.Duration
	// ReadTimeout bounds the wait for the read index. Default 10 s.
	ReadTimeout time.Duration
	// LocalReadAfter is how long a read by digest waits for the read index before
	// a record of the local state will do. Default 2 s.
	LocalReadAfter time.Duration
	// AvailableReads has tags and lists answered from the local state as well when the
	// read index takes longer than that. WatchStale tells whether they were.
	AvailableReads bool
	// UploadTTL is how long an upload may rest. Default 24 h.
	UploadTTL time.Duration
	// FinishedTTL is how long it is remembered that an upload is finished or cancelled, and how long after its
	// beginning its first bytes may come. Default 1 h.
	FinishedTTL time.Duration
	// BlobGrace is how long a blob stays that no manifest refers to, so that running
	// pulls can end, and a push that was told the blob is there can refer to it.
	// The same on all nodes. Default 24 h.
	BlobGrace time.Duration
	// UntaggedAge is how long a manifest stays that no tag points at, no image
	// index lists, and that is no referrer of a manifest that is there; 0 keeps
	// them. The same on all nodes.
	UntaggedAge time.Duration
	// ExpireInterval is the time between two rounds of expiry. Default 1 min.
	ExpireInterval time.Duration
}

// Store reads and changes the replicated state. Its methods may be called at the
// same time. Errors of writes: ErrUnavailable says that the write was not carried
// out, ErrOutcomeUnknown that it may have been; all others are answers.
type Store struct {
	machine *Machine
	log     Log
	cfg     StoreConfig
}

// NewStore returns the typed face of m, which log replicates. It starts nothing.
func NewStore(m *Machine, log Log, cfg StoreConfig) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for _, d := range []struct {
		field  *time.Duration
		preset time.Duration
	}{
		{&cfg.WriteTimeout, 20 * time.Second},
		{&cfg.ReadTimeout, 10 * time.Second},
		{&cfg.LocalReadAfter, 2 * time.Second},
		{&cfg.UploadTTL, 24 * time.Hour},
		{&cfg.FinishedTTL, time.Hour},
		{&cfg.BlobGrace, 24 * time.Hour},
		{&cfg.ExpireInterval, time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.preset
		}
	}
	return &Store{machine: m, log: log, cfg: cfg}
}

// read runs the function on a state that has everything acknowledged before the
// call, on any node.
func (s *Store) read(ctx context.Context, read func(view) error) error {
	bounded, cancel := boundedWait(ctx, s.cfg.ReadTimeout)
	defer cancel()
	if err := s.readIndex(bounded); err != nil {
		return unavailable(ctx, err)
	}
	return s.machine.view(read)
}

// readContent is read for what is named by its digest and so never changes. When
// the read index is long in coming, the local state may say that it is there;
// that it is not there takes the read index.
func (s *Store) readContent(ctx context.Context, read func(view) error) error {
	short, cancel := boundedWait(ctx, s.cfg.LocalReadAfter)
	defer cancel()
	indexErr := s.readIndex(short)
	err := s.machine.view(read)
	switch {
	case indexErr == nil:
		return err
	case err == nil:
		NoteStale(ctx)
		return nil
	case !isAbsence(err):
		return err
	case short.Err() == nil || ctx.Err() != nil:
		return unavailable(ctx, indexErr)
	default: // only the short wait is over: an election may be
		return s.read(ctx, read)
	}
}

// readNamed is read for what has a name and so may change: tags and lists. If the
// operator prefers an old answer to none, it is readContent.
func (s *Store) readNamed(ctx context.Context, read func(view) error) error {
	if s.cfg.AvailableReads {
		return s.readContent(ctx, read)
	}
	return s.read(ctx, read)
}

// isAbsence reports whether a read says that something is not there.
func isAbsence(err error) bool {
	return errors.Is(err, ErrBlobUnknown) || errors.Is(err, ErrManifestUnknown) || errors.Is(err, ErrRepositoryUnknown)
}

// unavailable is the error of a call that got no answer; a caller that has gone
// away gets its own reason.
func unavailable(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, cause)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Pauses between two proposals of one command.
const (
	retryPauseMin = 20 * time.Millisecond
	retryPauseMax = time.Second
)

// propose replicates a command and returns the state machine's answer, or the
// refusal as an error.
func (s *Store) propose(ctx context.Context, command *proto.Command) (*proto.Result, error) {
	bounded, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
	defer cancel()
	result, err := s.proposeOnce(bounded, command)
	if err == nil && result.GetRefusal() == proto.Refusal_REFUSAL_EXPIRED {
		// This node is so far behind that its command was too old when it was made,
		// and no copy of it is on its way. Catch up and make another.
		if err := s.log.ReadIndex(bounded); err != nil {
			return nil, unavailable(ctx, err)
		}
		result, err = s.proposeOnce(bounded, command)
	}
	if err != nil {
		return nil, err
	}
	return result, refusalError(result)
}

// proposeOnce stamps the command and proposes the same bytes until their fate is
// known or ctx ends.
func (s *Store) proposeOnce(ctx context.Context, command *proto.Command) (*proto.Result, error) {
	data, err := s.stamp(command)
	if err != nil {
		return nil, err
	}
	unknown := false
	for pause := retryPauseMin; ; pause = min(2*pause, retryPauseMax) {
		if err := ctx.Err(); err != nil && !unknown {
			return nil, unavailable(ctx, err)
		}
		answer, _, err := s.log.Propose(ctx, data)
		if err == nil {
			return knownResult(answer, unknown)
		}
		if errors.Is(err, consensus.ErrCommandRefused) && !unknown {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if !errors.Is(err, consensus.ErrNoLeader) {
			unknown = true
		} else if !unknown {
			return nil, unavailable(ctx, err)
		}
		if errors.Is(err, consensus.ErrClosed) {
			return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		case <-time.After(pause):
		}
	}
}

// stamp gives a command its id, time and last log index, and encodes it.
func (s *Store) stamp(command *proto.Command) ([]byte, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make request id: %w", err)
	}
	applied, _ := s.machine.Applied()
	command.RequestId = id[:]
	command.TimeUnixMs = s.cfg.Now().UnixMilli()
	command.NotAfterIndex = applied + requestWindow
	return encodeCommand(command)
}

// knownResult decodes the answer to a command. That the last copy came too late
// says nothing of an earlier one whose outcome is unknown.
func knownResult(answer []byte, unknown bool) (*proto.Result, error) {
	result := &proto.Result{}
	if err := pb.Unmarshal(answer, result); err != nil {
		return nil, fmt.Errorf("%w: decode result: %w", ErrOutcomeUnknown, err)
	}
	if unknown && result.GetRefusal() == proto.Refusal_REFUSAL_EXPIRED {
		return nil, fmt.Errorf("%w: its answer is forgotten", ErrOutcomeUnknown)
	}
	return result, nil
}
