package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// getBlob answers GET and HEAD of a blob. HEAD never touches the blob's bytes.
func (g *gateway) getBlob(ctx context.Context, x *exchange) error {
	if isSigned(x.query) {
		if err := g.checkSignature(ctx, x); err != nil {
			return err
		}
	}
	lookUp := g.metadata.Blob
	if x.r.Method == http.MethodHead {
		// A client that asks whether it is there, and is told so, does not push it, but
		// refers to it by a manifest soon.
		lookUp = g.metadata.RetainBlob
	}
	watched, stale := metadata.WatchStale(ctx)
	blob, err := lookUp(watched, x.repository, x.reference)
	if err != nil {
		return fmt.Errorf("look up blob %s: %w", x.reference, err)
	}
	size := blob.GetSize()
	etag := `"` + x.reference + `"`
	header := x.w.Header()
	header.Set("Etag", etag)
	// A digest's content never changes; nobody on the way may recode it.
	header.Set("Cache-Control", "max-age=31536000, no-transform")
	if isSigned(x.query) {
		// A cache that others use would go on serving it when the signature has expired.
		header.Set("Cache-Control", "private, max-age=31536000, no-transform")
	}
	header.Set("Docker-Content-Digest", x.reference)
	if stale.Happened() {
		x.warnStale()
	}
	if match := x.r.Header.Get("If-None-Match"); match != "" && matchesETag(match, etag) {
		return x.reply(http.StatusNotModified)
	}
	if x.r.Method == http.MethodGet {
		target, why, err := g.redirectTarget(x, blob)
		if err != nil {
			return err
		}
		g.metrics.pulls.WithLabelValues(string(why)).Inc()
		x.redirected = why
		if target != "" {
			return x.redirect(target)
		}
	}
	header.Set("Accept-Ranges", "bytes")
	header.Set("Content-Type", blobType)
	s, err := x.choose(blob, etag)
	if err != nil {
		return err
	}
	if x.r.Method == http.MethodHead || size == 0 {
		x.w.WriteHeader(s.status)
		return nil
	}
	s.worthy = x.redirected == decidedHot
	return g.sendExtents(ctx, x, s)
}

// blobType is the type of every blob. It is never empty: stargz-snapshotter
// parses it.
const blobType = "application/octet-stream"

// choose decides, by the Range header, what of a blob to send, and sets the
// headers that go with it.
func (x *exchange) choose(blob *proto.Blob, etag string) (sending, error) {
	size, header := blob.GetSize(), x.w.Header()
	spans, err := parseRange(x.wantedRange(etag), size)
	if errors.Is(err, errRangeInvalid) {
		header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	}
	if err != nil {
		return sending{}, err
	}
	s := sending{digest: x.reference, extents: blob.GetExtents(), spans: spans, status: http.StatusPartialContent}
	length := uint64(0)
	switch {
	case len(spans) == 0 || overlap(spans):
		s.spans, s.status = []span{{length: size}}, http.StatusOK
		length = size
	case len(spans) == 1:
		header.Set("Content-Range", spans[0].contentRange(size))
		length = spans[0].length
	default:
		parts := newByteRanges(x.reference, size)
		header.Set("Content-Type", parts.contentType())
		s.head, s.tail = parts.head, parts.tail()
		length = parts.length(spans)
	}
	header.Set("Content-Length", strconv.FormatUint(length, 10))
	return s, nil
}

// wantedRange returns the Range header if it counts: ranges are defined for GET
// only, and an If-Range for another entity takes it back (RFC 9110 section 13.1.5).
func (x *exchange) wantedRange(etag string) string {
	if x.r.Method != http.MethodGet {
		return ""
	}
	if condition := strings.TrimSpace(x.r.Header.Get("If-Range")); condition != "" && condition != etag {
		return ""
	}
	// It may be there once only; as something unknown it is ignored.
	wanted, _ := one(x.r.Header.Values("Range"))
	return wanted
}

// deleteBlob answers DELETE of a blob: it goes from this repository at once, its
// bytes go when no repository has it.
func (g *gateway) deleteBlob(ctx context.Context, x *exchange) error {
	if err := g.metadata.DeleteBlob(ctx, x.repository, x.reference); err != nil {
		return fmt.Errorf("delete blob %s: %w", x.reference, err)
	}
	return x.reply(http.StatusAccepted)
}
