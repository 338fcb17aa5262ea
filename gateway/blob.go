package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// getBlob answers GET and HEAD of a blob. HEAD never touches the blob's bytes.
func (g *gateway) getBlob(ctx context.Context, x *exchange) error {
	blob, err := g.metadata.Blob(ctx, x.repository, x.reference)
	if err != nil {
		return fmt.Errorf("look up blob %s: %w", x.reference, err)
	}
	size := blob.GetSize()
	etag := `"` + x.reference + `"`
	header := x.w.Header()
	header.Set("Etag", etag)
	// A digest's content never changes; nobody on the way may recode it.
	header.Set("Cache-Control", "max-age=31536000, no-transform")
	header.Set("Docker-Content-Digest", x.reference)
	if match := x.r.Header.Get("If-None-Match"); match != "" && matchesETag(match, etag) {
		return x.reply(http.StatusNotModified)
	}
	header.Set("Accept-Ranges", "bytes")
	// Never empty: stargz-snapshotter parses it.
	header.Set("Content-Type", "application/octet-stream")

	part, status := span{length: size}, http.StatusOK
	if wanted := x.wantedRange(etag); wanted != "" {
		spans, err := parseRange(wanted, size)
		if errors.Is(err, errRangeInvalid) {
			header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		}
		if err != nil {
			return err
		}
		// Several ranges get the whole blob, which every client of theirs takes.
		if len(spans) == 1 {
			part, status = spans[0], http.StatusPartialContent
			header.Set("Content-Range", part.contentRange(size))
		}
	}
	header.Set("Content-Length", strconv.FormatUint(part.length, 10))
	if x.r.Method == http.MethodHead || part.length == 0 {
		x.w.WriteHeader(status)
		return nil
	}
	return g.sendExtents(ctx, x, sending{extents: blob.GetExtents(), span: part, status: status})
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
	return x.r.Header.Get("Range")
}

// sending is what sendExtents sends.
type sending struct {
	extents []*proto.Extent
	span    span
	status  int
}

// sendExtents sends a reply whose headers are set. If the bytes can't be had, it
// fails before the header is written as long as that is possible; later its error
// cuts the connection, so that nobody takes a part for the whole.
func (g *gateway) sendExtents(ctx context.Context, x *exchange, s sending) error {
	release, err := g.pulls.acquire(ctx, 1)
	if err != nil {
		return err
	}
	defer release()
	reader, err := g.blobs.Read(ctx, s.extents, s.span.offset, s.span.length)
	if err != nil {
		return fmt.Errorf("open %s: %w", x.reference, err)
	}
	buffer := g.buffers.Get().(*[]byte)
	defer g.buffers.Put(buffer)
	sent, err := io.CopyBuffer(contentWriter{x.w, s.status}, reader, *buffer)
	// Closing a reader has nothing to say about what was read.
	_ = reader.Close()
	switch {
	case x.w.err != nil:
		return fmt.Errorf("send %s: %w", x.reference, x.w.err)
	case err != nil:
		return fmt.Errorf("read %s: %w", x.reference, err)
	case uint64(sent) != s.span.length:
		return fmt.Errorf("read %s: %d bytes of %d: %w", x.reference, sent, s.span.length, io.ErrUnexpectedEOF)
	}
	return nil
}

// contentWriter writes the header with the first bytes of content. It has no
// ReadFrom on purpose: the copy must use the gateway's buffer.
type contentWriter struct {
	w      *response
	status int
}

// Write implements io.Writer.
func (c contentWriter) Write(p []byte) (int, error) {
	if !c.w.started() {
		c.w.WriteHeader(c.status)
	}
	return c.w.Write(p)
}

// deleteBlob answers DELETE of a blob: it goes from this repository at once, its
// bytes go when no repository has it.
func (g *gateway) deleteBlob(ctx context.Context, x *exchange) error {
	if err := g.metadata.DeleteBlob(ctx, x.repository, x.reference); err != nil {
		return fmt.Errorf("delete blob %s: %w", x.reference, err)
	}
	return x.reply(http.StatusAccepted)
}
