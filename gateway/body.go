package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// body reads a request's body. It bounds how long a client may be silent, checks
// a length announced by Content-Range, and keeps the first error, since whoever
// reads it may wrap or swallow that. Not safe for concurrent use.
type body struct {
	source  io.Reader
	control *http.ResponseController
	now     func() time.Time
	// idle is how long the client may take for minProgress bytes. patience is what is
	// left of that, progress what has come of these.
	idle, patience time.Duration
	progress       int
	// deadline is when the whole body must have come; zero for never.
	deadline time.Time
	// until is the connection's read deadline as it was last set.
	until time.Time
	// announced says that exactly expected bytes must still come.
	announced bool
	expected  uint64
	// awaited says that the client sends nothing before a "100 Continue", which
	// net/http sends at the first read.
	awaited bool
	// http2 says that deadlines must not be left armed, see disarm.
	http2    bool
	received uint64
	err      error
}

// minProgress is how many bytes must come in the time for which a client may be
// silent, unless there are no more: one that sends a byte now and then would hold its
// turn for ever, like one that sends none. That is 270 bytes/s by default.
const minProgress = 16 << 10

func newBody(r *http.Request, control *http.ResponseController, idle time.Duration, now func() time.Time) *body {
	b := &body{
		source: r.Body, control: control, idle: idle, patience: idle, now: now, http2: r.ProtoMajor == 2,
		awaited: strings.EqualFold(r.Header.Get("Expect"), "100-continue"),
	}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		b.source, b.err = http.NoBody, io.EOF
		return b
	}
	// net/http reads some of a body that no handler wants before it sends the reply.
	// See that this ends, and in time for the reply, which may take idle as well.
	_ = control.SetReadDeadline(now().Add(idle / 2))
	return b
}

// announce makes the body fail with errSizeInvalid unless it has exactly so many
// bytes.
func (b *body) announce(bytes uint64) { b.announced, b.expected = true, bytes }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	b.awaited = false
	began := b.now()
	b.arm(began)
	n, err := b.source.Read(p)
	b.disarm(err)
	b.spend(n, began)
	b.received += uint64(n)
	if b.announced {
		if uint64(n) > b.expected {
			n, err = int(b.expected), refuse(errSizeInvalid, "the body is longer than its Content-Range", nil)
		} else if errors.Is(err, io.EOF) && uint64(n) < b.expected {
			err = refuse(errSizeInvalid, "the body is shorter than its Content-Range", nil)
		}
		b.expected -= uint64(n)
	}
	if err != nil {
		b.err = bodyError(err)
		return n, b.err
	}
	return n, nil
}

// bodyError says in the gateway's terms why a body could not be read.
func bodyError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, errSizeInvalid):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("read request body: %w: %w", errBodySlow, err)
	default:
		return fmt.Errorf("read request body: %w: %w", errBodyBroken, err)
	}
}

// arm moves the connection's read deadline, not on every read but often enough.
// net/http takes it back when it has seen the end of the body.
func (b *body) arm(now time.Time) {
	deadline := now.Add(b.patience)
	if !b.deadline.IsZero() && b.deadline.Before(deadline) {
		deadline = b.deadline
	}
	if !b.until.IsZero() && deadline.Sub(b.until).Abs() < b.idle/8 {
		return
	}
	b.until = deadline
	// A connection without deadlines (in tests) has no silent client either.
	_ = b.control.SetReadDeadline(deadline)
}

// disarm takes the read deadline back after a read. HTTP/2 has its deadlines go off
// between reads too, while it is the server that is slow, and fails the stream for
// it; HTTP/1.1 looks at them only in a read, and moving them less often is cheaper.
func (b *body) disarm(err error) {
	if b.http2 && err == nil {
		_ = b.control.SetReadDeadline(time.Time{})
		b.until = time.Time{}
	}
}

// spend takes the time that a read has waited off the client's patience, or begins
// anew. The time between reads is the server's.
func (b *body) spend(n int, began time.Time) {
	if b.progress += n; b.progress >= minProgress {
		b.progress, b.patience = 0, b.idle
		return
	}
	b.patience -= b.now().Sub(began)
}

// ended says whether the client has sent everything.
func (b *body) ended() bool { return errors.Is(b.err, io.EOF) }

// failed returns why the body could not be read to its end; nil if it was, or
// was not read that far.
func (b *body) failed() error {
	if b.ended() {
		return nil
	}
	return b.err
}

// Bounds of what is still read after a refusal, see drain.
const (
	drainBytes = 4 << 20
	drainTime  = 2 * time.Second
)

// drain reads on after the reply was sent, for a while. A client that is still
// sending would otherwise find its connection reset, and might never see the
// reply that says why.
func (b *body) drain() {
	if b.ended() || b.awaited || errors.Is(b.err, errBodySlow) || errors.Is(b.err, errBodyBroken) {
		return
	}
	_ = b.control.SetReadDeadline(b.now().Add(drainTime))
	// Whatever comes of it, the connection is closed after this.
	n, _ := io.CopyN(io.Discard, b.source, drainBytes)
	b.received += uint64(n)
}
