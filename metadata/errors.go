package metadata

import (
	"errors"
	"fmt"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// What the state machine refuses. A refusal changed nothing and is the same on
// every node. Test for these with errors.Is; the text says what was refused.
var (
	// ErrRepositoryUnknown: nothing was ever pushed to the repository.
	ErrRepositoryUnknown = errors.New("repository unknown")
	// ErrBlobUnknown: the blob is not linked in the repository.
	ErrBlobUnknown = errors.New("blob unknown")
	// ErrUploadUnknown: there is no such upload in the repository, or it expired
	// or was cancelled.
	ErrUploadUnknown = errors.New("upload unknown")
	// ErrUploadSize: the upload's size is not the one that the caller saw. The
	// error is an *UploadSizeError.
	ErrUploadSize = errors.New("upload has another size")
	// ErrUploadFinished: the upload has become a blob already.
	ErrUploadFinished = errors.New("upload is finished")
	// ErrUploadLost: so many shards of the upload's extents are damaged or gone that it
	// can't be read. The client has to push everything again.
	ErrUploadLost = errors.New("upload is lost")
	// ErrManifestUnknown: the repository has no manifest with this digest.
	ErrManifestUnknown = errors.New("manifest unknown")
	// ErrTagUnknown: the repository has no such tag.
	ErrTagUnknown = errors.New("tag unknown")
	// ErrReferenceUnknown: the manifest names blobs, or manifests, that are not in
	// the repository. The error is a *ReferenceUnknownError.
	ErrReferenceUnknown = errors.New("manifest references what is unknown")
	// ErrPrecondition: a tag or a manifest is not what the caller wants it to be
	// for the change. The error is a *PreconditionError.
	ErrPrecondition = errors.New("precondition does not hold")
	// ErrExtentLate: so long has passed since the extent was stored that the sweep may
	// have taken its shards. The client may push it again.
	ErrExtentLate = errors.New("extent is recorded too late")
	// ErrExtentUnknown: no blob or upload names the extent any more.
	ErrExtentUnknown = errors.New("extent unknown")
	// errKeyKnown: another node was first to add a signing key or a token key.
	errKeyKnown = errors.New("key is known")
	// ErrNodeUnknown: no node has this id.
	ErrNodeUnknown = errors.New("node unknown")
	// ErrNodeNameTaken: another node that is not removed has this name.
	ErrNodeNameTaken = errors.New("node name is taken")
	// ErrNodeRemoved: the node was removed and can't come back under its id.
	ErrNodeRemoved = errors.New("node was removed")
	// ErrNodeNotEmpty: the node holds shards, which its removal would cost.
	ErrNodeNotEmpty = errors.New("node holds shards")
	// ErrHolderUnknown: an extent has shards on nodes that are not members any more,
	// and can't be read without. The client may try again: a new placement avoids
	// those nodes.
	ErrHolderUnknown = errors.New("shard holder is not a member of the cluster")
	// ErrAccountUnknown: nobody has this name.
	ErrAccountUnknown = errors.New("account unknown")
	// ErrTagImmutable: the policy keeps the tag where it is. The error is a
	// *TagImmutableError.
	ErrTagImmutable = errors.New("tag is immutable")
	// ErrTooManyUploads: the owner has too many uploads in progress. One that ends, or
	// expires, makes room.
	ErrTooManyUploads = errors.New("too many uploads in progress")
	// ErrJoinToken: there is no such join token, its secret is another, or it is expired
	// or used up.
	ErrJoinToken = errors.New("join token is not good")
	// ErrChanged: what the caller wants to change is not what it has seen any more.
	ErrChanged = errors.New("somebody else has changed it")
	// ErrClusterID: the state belongs to another cluster.
	ErrClusterID = errors.New("state belongs to another cluster")
	// ErrInvalid: the command makes no sense, whatever the state.
	ErrInvalid = errors.New("invalid command")
)

// What keeps a question from being answered.
var (
	// ErrUnavailable: there is no leader or no quorum. A write that failed with
	// this was not carried out.
	ErrUnavailable = errors.New("metadata unavailable")
	// ErrOutcomeUnknown: the write may have been carried out, or may still be.
	ErrOutcomeUnknown = errors.New("outcome of the write is unknown")
)

// What ends the process: the state on this node's disk can't be trusted or
// can't be written.
var (
	// ErrCorrupt: a record, a command, or the database itself is damaged.
	ErrCorrupt = errors.New("state is corrupt")
	// ErrDiverged: this node's state is not the one that the majority has.
	ErrDiverged = errors.New("state differs from the cluster's")
	// ErrUnknownCommand: a newer version of atoll wrote this command.
	ErrUnknownCommand = errors.New("command is of a newer version")
	// ErrLocked: another process has the state open.
	ErrLocked = errors.New("state is in use by another process")
	// ErrClosed: the machine was closed, or failed before.
	ErrClosed = errors.New("state machine is closed")
)

// UploadSizeError is an ErrUploadSize that tells the upload's size.
type UploadSizeError struct {
	// Size is the number of bytes acknowledged so far.
	Size uint64
}

func (e *UploadSizeError) Error() string {
	return fmt.Sprintf("%v: %d bytes are recorded", ErrUploadSize, e.Size)
}

// Is makes the error match ErrUploadSize.
func (e *UploadSizeError) Is(target error) bool { return target == ErrUploadSize }

// ReferenceUnknownError is an ErrReferenceUnknown that lists what is missing.
type ReferenceUnknownError struct {
	// Digests of what is missing, in the manifest's order.
	Digests []string
}

func (e *ReferenceUnknownError) Error() string {
	return fmt.Sprintf("%v: %s", ErrReferenceUnknown, strings.Join(e.Digests, ", "))
}

// Is makes the error match ErrReferenceUnknown.
func (e *ReferenceUnknownError) Is(target error) bool { return target == ErrReferenceUnknown }

// refusalError turns the state machine's refusal into the error for the caller;
// nil when the command was carried out.
func refusalError(result *proto.Result) error {
	switch result.GetRefusal() {
	case proto.Refusal_REFUSAL_UNSPECIFIED:
		return nil
	case proto.Refusal_REFUSAL_UPLOAD_SIZE:
		return &UploadSizeError{Size: result.GetUploadSize()}
	case proto.Refusal_REFUSAL_REFERENCE_UNKNOWN:
		return &ReferenceUnknownError{Digests: result.GetDigests()}
	case proto.Refusal_REFUSAL_PRECONDITION:
		return &PreconditionError{Tag: result.GetTag(), Digest: result.GetDigest()}
	case proto.Refusal_REFUSAL_TAG_IMMUTABLE:
		return &TagImmutableError{Tag: result.GetTag()}
	}
	sentinel := refusalSentinel(result.GetRefusal())
	if result.GetDetail() == "" {
		return sentinel
	}
	return fmt.Errorf("%w: %s", sentinel, result.GetDetail())
}

// refusalSentinel is the error of a refusal that carries nothing but words.
func refusalSentinel(refusal proto.Refusal) error {
	switch refusal {
	case proto.Refusal_REFUSAL_REPOSITORY_UNKNOWN:
		return ErrRepositoryUnknown
	case proto.Refusal_REFUSAL_BLOB_UNKNOWN:
		return ErrBlobUnknown
	case proto.Refusal_REFUSAL_UPLOAD_UNKNOWN:
		return ErrUploadUnknown
	case proto.Refusal_REFUSAL_UPLOAD_FINISHED:
		return ErrUploadFinished
	case proto.Refusal_REFUSAL_UPLOAD_LOST:
		return ErrUploadLost
	case proto.Refusal_REFUSAL_MANIFEST_UNKNOWN:
		return ErrManifestUnknown
	case proto.Refusal_REFUSAL_TAG_UNKNOWN:
		return ErrTagUnknown
	case proto.Refusal_REFUSAL_NODE_UNKNOWN:
		return ErrNodeUnknown
	case proto.Refusal_REFUSAL_NODE_NAME_TAKEN:
		return ErrNodeNameTaken
	case proto.Refusal_REFUSAL_NODE_REMOVED:
		return ErrNodeRemoved
	case proto.Refusal_REFUSAL_NODE_NOT_EMPTY:
		return ErrNodeNotEmpty
	case proto.Refusal_REFUSAL_HOLDER_UNKNOWN:
		return ErrHolderUnknown
	case proto.Refusal_REFUSAL_CLUSTER_ID:
		return ErrClusterID
	case proto.Refusal_REFUSAL_ACCOUNT_UNKNOWN:
		return ErrAccountUnknown
	case proto.Refusal_REFUSAL_TOO_MANY_UPLOADS:
		return ErrTooManyUploads
	case proto.Refusal_REFUSAL_JOIN_TOKEN:
		return ErrJoinToken
	case proto.Refusal_REFUSAL_CHANGED:
		return ErrChanged
	case proto.Refusal_REFUSAL_EXPIRED:
		return ErrUnavailable
	case proto.Refusal_REFUSAL_EXTENT_LATE:
		return ErrExtentLate
	case proto.Refusal_REFUSAL_EXTENT_UNKNOWN:
		return ErrExtentUnknown
	case proto.Refusal_REFUSAL_KEY_KNOWN:
		return errKeyKnown
	default: // REFUSAL_INVALID, and what a newer node may answer
		return ErrInvalid
	}
}
