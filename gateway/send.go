package gateway

import (
	"context"
	"fmt"
	"io"

	"github.com/atollregistry/atoll/proto"
)

// sending is what sendExtents sends: spans of a blob, none of them empty, in the
// order given.
type sending struct {
	digest  string
	extents []*proto.Extent
	// worthy says that this node should keep the blob whole.
	worthy bool
	spans  []span
	status int
	// head returns what stands before the bytes of a span; nil for nothing.
	head func(span) string
	// tail stands behind everything.
	tail string
}

// maxGap is how many bytes between two spans are read and thrown away rather than
// sought over: they lie in cells that must be read and verified anyway (a cell has
// up to 256 KiB).
const maxGap = 256 << 10

// run returns how many of the first spans are read in one go, and the span of the
// blob that they lie in.
func (s *sending) run() (spans int, whole span) {
	whole = s.spans[0]
	for spans = 1; spans < len(s.spans); spans++ {
		next, end := s.spans[spans], whole.offset+whole.length
		if next.offset < end || next.offset-end > maxGap {
			break
		}
		whole.length = next.offset + next.length - whole.offset
	}
	return spans, whole
}

// sendExtents sends a reply whose headers are set. If the bytes can't be had, it
// fails before the header is written as long as that is possible; later its error
// cuts the connection, so that nobody takes a part for the whole. It reads no
// faster than the client does, and stops when the client is gone.
func (g *gateway) sendExtents(ctx context.Context, x *exchange, s sending) error {
	release, err := g.pulls.acquire(ctx, 1)
	if err != nil {
		return err
	}
	defer release()
	buffer := g.buffers.Get().(*[]byte)
	defer g.buffers.Put(buffer)
	for len(s.spans) > 0 {
		n, whole := s.run()
		reader, err := g.blobs.Pull(ctx, s.digest, s.extents, whole.offset, whole.length, s.worthy)
		if err != nil {
			return fmt.Errorf("open %s: %w", x.reference, err)
		}
		if err := s.copyFrom(x, reader, n, *buffer); err != nil {
			return err
		}
	}
	if s.tail != "" {
		_, _ = io.WriteString(x.w, s.tail) // A client that is gone is seen in x.w.err.
	}
	return nil
}

// copyFrom is copySpans with a reader that is closed after that, whatever happens.
func (s *sending) copyFrom(x *exchange, reader io.ReadCloser, n int, buffer []byte) error {
	defer func() { _ = reader.Close() }() // It has nothing to say about what was read.
	return s.copySpans(x, reader, n, buffer)
}

// copySpans sends the first n spans from a reader that begins with the first of
// them, and takes them off the list.
func (s *sending) copySpans(x *exchange, reader io.Reader, n int, buffer []byte) error {
	position := s.spans[0].offset
	for _, next := range s.spans[:n] {
		if gap := int64(next.offset - position); gap > 0 {
			if _, err := io.CopyBuffer(discarding{}, io.LimitReader(reader, gap), buffer); err != nil {
				return fmt.Errorf("read %s: %w", x.reference, err)
			}
		}
		w := &contentWriter{w: x.w, status: s.status}
		if s.head != nil {
			w.head = s.head(next)
		}
		source := reader
		if n > 1 { // Alone, it may use the reader's own way of writing.
			source = io.LimitReader(reader, int64(next.length))
		}
		sent, err := io.CopyBuffer(w, source, buffer)
		switch {
		case x.w.err != nil:
			return fmt.Errorf("send %s: %w", x.reference, x.w.err)
		case err != nil:
			return fmt.Errorf("read %s: %w", x.reference, err)
		case uint64(sent) != next.length:
			return fmt.Errorf("read %s: %d bytes of %d: %w", x.reference, sent, next.length, io.ErrUnexpectedEOF)
		}
		position = next.offset + next.length
	}
	s.spans = s.spans[n:]
	return nil
}

// contentWriter writes the header with the first bytes of content, and before
// those what stands before them. It has no ReadFrom on purpose: the copy must use
// the gateway's buffer.
type contentWriter struct {
	w      *response
	status int
	head   string
}

// Write implements io.Writer.
func (c *contentWriter) Write(p []byte) (int, error) {
	if err := c.begin(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// SendFile sends what a file has, on a plain connection without copying it.
func (c *contentWriter) SendFile(file *io.LimitedReader) (int64, error) {
	if err := c.begin(); err != nil {
		return 0, err
	}
	return c.w.sendFile(file)
}

// begin writes what stands before the content.
func (c *contentWriter) begin() error {
	if !c.w.started() {
		c.w.WriteHeader(c.status)
	}
	if c.head == "" {
		return nil
	}
	_, err := io.WriteString(c.w, c.head)
	c.head = ""
	return err
}

// discarding is io.Discard without its ReadFrom, which would bring a buffer of
// its own.
type discarding struct{}

// Write implements io.Writer.
func (discarding) Write(p []byte) (int, error) { return len(p), nil }
