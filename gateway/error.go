package gateway

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/metadata"
)

// What the gateway itself finds wrong with a request, or can't do now.
var (
	errRouteUnknown        = errors.New("no such endpoint")
	errMethod              = errors.New("method not allowed")
	errNameInvalid         = errors.New("invalid repository name")
	errTagInvalid          = errors.New("invalid tag")
	errDigestInvalid       = errors.New("invalid digest")
	errSizeInvalid         = errors.New("body has another length than announced")
	errRangeInvalid        = errors.New("range not satisfiable")
	errTooManyRanges       = errors.New("too many ranges")
	errChunkMalformed      = errors.New("malformed Content-Range")
	errManifestInvalid     = errors.New("invalid manifest")
	errManifestSize        = errors.New("manifest too large")
	errTooManyTags         = errors.New("too many tags")
	errPreconditionInvalid = errors.New("malformed precondition")
	errPageInvalid         = errors.New("invalid page size")
	errUploadsBusy         = errors.New("too many uploads at once")
	errPullsBusy           = errors.New("too many pulls at once")
	errClientBusy          = errors.New("too many requests of one client at once")
	errTooFast             = errors.New("too many requests")
	errBodySlow            = errors.New("client stopped sending")
	errBodyBroken          = errors.New("request body broke off")
	errSignature           = errors.New("invalid signature")
	errUnauthenticated     = errors.New("not logged in")
	errInsufficientScope   = errors.New("token does not allow this")
	errDenied              = errors.New("no right to do this")
	errLoginThrottled      = errors.New("too many failed logins")
	errLoginsBusy          = errors.New("too many logins at once")
	errIssuerUnavailable   = errors.New("issuer of the token can't be asked")
	errTokenRequest        = errors.New("malformed token request")
	errAudit               = errors.New("audit log can't be written")
	errHostInvalid         = errors.New("invalid host")
	errPanic               = errors.New("panic")
)

// Codes of the errors JSON. Those that the OCI specification does not have are
// the ones that clients know from other registries: an unknown code keeps
// go-containerregistry from trying again.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDenied              = "DENIED"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codePageInvalid         = "PAGINATION_NUMBER_INVALID"
	codeRangeInvalid        = "RANGE_INVALID"
	codeSizeInvalid         = "SIZE_INVALID"
	codeTagInvalid          = "TAG_INVALID"
	codeTooManyRequests     = "TOOMANYREQUESTS"
	codeUnauthorized        = "UNAUTHORIZED"
	codeUnavailable         = "UNAVAILABLE"
	codeUnknown             = "UNKNOWN"
	codeUnsupported         = "UNSUPPORTED"
)

// Seconds after which a client may try again: about an election, a moment, and
// the time in which an operator could do something.
const (
	retryElection = 5
	retrySoon     = 2
	retryOperator = 60
)

// reply is how an error is told to a client.
type reply struct {
	err     error
	status  int
	code    string
	message string
	// retryAfter is in seconds; 0 for no Retry-After.
	retryAfter int
}

// replies is the one mapping from errors to replies. The first row whose error
// is the one at hand, by errors.Is, counts; an error without a row is a 500 that
// tells nothing but the request id. Rows of 500 are errors that no request can
// cause: they are here so that every sentinel is accounted for.
var replies = []reply{
	{err: errRouteUnknown, status: http.StatusNotFound, code: codeUnsupported, message: "no such endpoint"},
	{err: errMethod, status: http.StatusMethodNotAllowed, code: codeUnsupported, message: "the endpoint has no such method"},
	{err: errNameInvalid, status: http.StatusBadRequest, code: codeNameInvalid, message: "invalid repository name"},
	{err: errTagInvalid, status: http.StatusBadRequest, code: codeTagInvalid, message: "invalid tag"},
	{err: errDigestInvalid, status: http.StatusBadRequest, code: codeDigestInvalid, message: "invalid digest"},
	{err: errSizeInvalid, status: http.StatusBadRequest, code: codeSizeInvalid, message: "the body has another length than announced"},
	{err: errRangeInvalid, status: http.StatusRequestedRangeNotSatisfiable, code: codeRangeInvalid, message: "the range can't be satisfied"},
	{err: errTooManyRanges, status: http.StatusBadRequest, code: codeRangeInvalid, message: "too many ranges"},
	{err: errChunkMalformed, status: http.StatusBadRequest, code: codeUploadInvalid, message: "malformed Content-Range"},
	{err: errManifestInvalid, status: http.StatusBadRequest, code: codeManifestInvalid, message: "invalid manifest"},
	{err: errManifestSize, status: http.StatusRequestEntityTooLarge, code: codeSizeInvalid, message: "the manifest is too large"},
	{err: errTooManyTags, status: http.StatusRequestURITooLong, code: codeTagInvalid, message: "too many tags at once"},
	{err: errPageInvalid, status: http.StatusBadRequest, code: codePageInvalid, message: "n is not a number of entries"},
	{err: errPreconditionInvalid, status: http.StatusBadRequest, code: codeUnsupported, message: "malformed precondition"},
	{err: errUploadsBusy, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "too many uploads at once", retryAfter: retryElection},
	{err: errPullsBusy, status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many pulls at once", retryAfter: retrySoon},
	{err: errClientBusy, status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many of your requests at once", retryAfter: retrySoon},
	{err: errTooFast, status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many requests", retryAfter: retrySoon},
	{err: errBodySlow, status: http.StatusRequestTimeout, code: codeUploadInvalid, message: "nothing was received for too long"},
	{err: errBodyBroken, status: http.StatusBadRequest, code: codeUploadInvalid, message: "the request body broke off"},
	// Not 401, which makes clients look for credentials; lazy pullers ask the first
	// node again on 403 only.
	{err: errSignature, status: http.StatusForbidden, code: codeDenied, message: "the signature is not valid"},
	{err: errUnauthenticated, status: http.StatusUnauthorized, code: codeUnauthorized, message: "authentication required"},
	{err: errInsufficientScope, status: http.StatusUnauthorized, code: codeUnauthorized, message: "the token does not allow this, ask for another one"},
	{err: errDenied, status: http.StatusForbidden, code: codeDenied, message: "you have no right to do this"},
	{err: errLoginThrottled, status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many logins have failed", retryAfter: retrySoon},
	{err: errLoginsBusy, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "too many logins at once", retryAfter: retrySoon},
	{err: errIssuerUnavailable, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the token's issuer can't be asked for its keys now", retryAfter: retryElection},
	{err: errNoTokenKey, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the cluster has no key for tokens yet", retryAfter: retrySoon},
	{err: errTokenRequest, status: http.StatusBadRequest, code: codeUnsupported, message: "malformed token request"},
	{err: errAudit, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node can't record what is done, so it does nothing that has to be recorded", retryAfter: retryOperator},
	{err: errHostInvalid, status: http.StatusBadRequest, code: codeUnsupported, message: "invalid host"},
	{err: errPanic, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},

	{err: metadata.ErrRepositoryUnknown, status: http.StatusNotFound, code: codeNameUnknown, message: "repository unknown"},
	{err: metadata.ErrBlobUnknown, status: http.StatusNotFound, code: codeBlobUnknown, message: "the repository has no such blob"},
	{err: metadata.ErrUploadUnknown, status: http.StatusNotFound, code: codeUploadUnknown, message: "the repository has no such upload"},
	{err: metadata.ErrUploadFinished, status: http.StatusNotFound, code: codeUploadUnknown, message: "the upload is finished"},
	// Two writers at once. BLOB_UPLOAD_INVALID makes go-containerregistry start again.
	{err: metadata.ErrUploadSize, status: http.StatusRequestedRangeNotSatisfiable, code: codeUploadInvalid, message: "the upload has another size"},
	// Not 404, which ends the push for some clients; on this they begin again.
	{err: metadata.ErrUploadLost, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the upload was lost, push the blob again", retryAfter: retrySoon},
	{err: metadata.ErrManifestUnknown, status: http.StatusNotFound, code: codeManifestUnknown, message: "manifest unknown"},
	{err: metadata.ErrTagUnknown, status: http.StatusNotFound, code: codeManifestUnknown, message: "tag unknown"},
	{err: metadata.ErrReferenceUnknown, status: http.StatusNotFound, code: codeManifestBlobUnknown, message: "the repository has nothing with this digest"},
	{err: metadata.ErrPrecondition, status: http.StatusPreconditionFailed, code: codeDenied, message: "the precondition does not hold"},
	// Not 409: some clients take that for a push that goes on.
	{err: metadata.ErrTagImmutable, status: http.StatusForbidden, code: codeDenied, message: "the policy keeps a tag where it is: push under another one"},
	{err: metadata.ErrTooManyUploads, status: http.StatusTooManyRequests, code: codeTooManyRequests, message: "too many uploads of this account are in progress", retryAfter: retrySoon},
	{err: metadata.ErrUnavailable, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the cluster has no quorum", retryAfter: retryElection},
	{err: metadata.ErrOutcomeUnknown, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the cluster did not answer in time", retryAfter: retryElection},
	{err: metadata.ErrHolderUnknown, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "a node left during the upload", retryAfter: retrySoon},
	{err: metadata.ErrExtentLate, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node was held up for too long", retryAfter: retrySoon},
	// This node ends; the next request goes to another one.
	{err: metadata.ErrCorrupt, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node can't go on", retryAfter: retrySoon},
	{err: metadata.ErrDiverged, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node can't go on", retryAfter: retrySoon},
	{err: metadata.ErrUnknownCommand, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node can't go on", retryAfter: retrySoon},
	{err: metadata.ErrLocked, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node can't go on", retryAfter: retrySoon},
	{err: metadata.ErrClosed, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node is shutting down", retryAfter: retrySoon},
	{err: metadata.ErrInvalid, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrClusterID, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrNodeUnknown, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrNodeNameTaken, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrNodeRemoved, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrNodeNotEmpty, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrAccountUnknown, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrJoinToken, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrChanged, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: metadata.ErrExtentUnknown, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},

	{err: blobstore.ErrNoSpace, status: http.StatusInsufficientStorage, code: codeUnavailable, message: "the cluster has no room for this blob", retryAfter: retryOperator},
	{err: blobstore.ErrInsufficientNodes, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "too few healthy nodes to store a blob safely", retryAfter: retryElection},
	{err: blobstore.ErrTooFewShards, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "too many nodes failed at once: a part of the blob can't be read or stored now", retryAfter: retryElection},
	{err: blobstore.ErrBusy, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the cluster is busy", retryAfter: retrySoon},
	{err: blobstore.ErrShardUnknown, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "a part of the blob is missing", retryAfter: retryElection},
	{err: blobstore.ErrChecksum, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "a part of the blob is damaged", retryAfter: retryElection},
	{err: blobstore.ErrDisk, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "a disk failed", retryAfter: retrySoon},
	{err: blobstore.ErrClosed, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node is shutting down", retryAfter: retrySoon},
	{err: blobstore.ErrHashState, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},
	{err: blobstore.ErrInvalid, status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"},

	// Of a call that had a deadline of its own: the client's own going away is
	// seen before this table is asked.
	{err: context.DeadlineExceeded, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "the cluster did not answer in time", retryAfter: retryElection},
	{err: context.Canceled, status: http.StatusServiceUnavailable, code: codeUnavailable, message: "this node is shutting down", retryAfter: retrySoon},
}

// refusal is an error that says to the client what exactly is wrong.
type refusal struct {
	cause   error
	message string
	detail  any
	// retryAfter is in seconds; 0 for that of the table.
	retryAfter int
}

// refuse returns an error that errors.Is cause, with a message and a detail that
// the client gets to see.
func refuse(cause error, message string, detail any) error {
	return &refusal{cause: cause, message: message, detail: detail}
}

// refuseFor is refuse for a number of seconds.
func refuseFor(cause error, seconds int, message string) error {
	return &refusal{cause: cause, message: message, retryAfter: seconds}
}

func (r *refusal) Error() string { return r.cause.Error() + ": " + r.message }
func (r *refusal) Unwrap() error { return r.cause }

// errorsBody is the body of every error, and errorEntry one of its errors, as
// the OCI distribution specification has them ("Error Codes").
type errorsBody struct {
	Errors []errorEntry `json:"errors"`
}

type errorEntry struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// findReply returns the row of the table for an error.
func findReply(err error) reply {
	for _, row := range replies {
		if errors.Is(err, row.err) {
			return row
		}
	}
	return reply{status: http.StatusInternalServerError, code: codeUnknown, message: "internal error"}
}

// entries returns what the errors JSON says about an error: one entry, or one
// for each blob or manifest that a manifest lacks.
func (x *exchange) entries(row reply, err error) []errorEntry {
	var missing *metadata.ReferenceUnknownError
	if errors.As(err, &missing) {
		var entries []errorEntry
		for _, digest := range missing.Digests {
			entries = append(entries, errorEntry{Code: row.code, Message: row.message, Detail: map[string]string{"digest": digest}})
		}
		if len(entries) > 0 {
			return entries
		}
	}
	entry := errorEntry{Code: row.code, Message: row.message}
	var told *refusal
	var found *metadata.PreconditionError
	var immutable *metadata.TagImmutableError
	switch {
	case errors.As(err, &found):
		detail := map[string]string{"digest": found.Digest} // Empty for nothing.
		if found.Tag != "" {
			detail["tag"] = found.Tag
		}
		entry.Detail = detail
	case errors.As(err, &immutable):
		entry.Detail = map[string]string{"tag": immutable.Tag}
	case errors.As(err, &told):
		entry.Message, entry.Detail = told.message, told.detail
	case row.status == http.StatusInternalServerError:
		entry.Detail = map[string]string{"requestId": x.id}
	case row.status == http.StatusNotFound && x.repository != "":
		detail := map[string]string{"name": x.repository}
		if x.reference != "" {
			detail["reference"] = x.reference
		}
		entry.Detail = detail
	}
	return []errorEntry{entry}
}

// replyError writes an error as the reply. Nothing of a reply may have been
// written before.
func (x *exchange) replyError(err error) error {
	row := findReply(err)
	header := x.w.Header()
	for _, name := range representationHeaders {
		header.Del(name)
	}
	if row.status == http.StatusUnauthorized {
		header.Set("Cache-Control", "no-store")
	}
	var told *refusal
	if errors.As(err, &told) && told.retryAfter > 0 {
		row.retryAfter = told.retryAfter
	}
	if row.retryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(row.retryAfter))
	}
	return x.replyJSON(row.status, "application/json", errorsBody{Errors: x.entries(row, err)})
}

// representationHeaders describe content that a handler meant to send before it
// failed.
var representationHeaders = []string{
	"Accept-Ranges", "Cache-Control", "Content-Length", "Content-Type", "Docker-Content-Digest", "Etag", "Last-Modified",
}
