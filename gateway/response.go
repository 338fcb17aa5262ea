package gateway

import (
	"io"
	"net/http"
	"time"

	"github.com/atollregistry/atoll/blobstore"
)

// response writes a reply. It bounds how long a client may take none of it, and
// knows what was written.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	now     func() time.Time
	// idle is how long one write may take.
	idle time.Duration
	// armed is when the connection's write deadline was last moved.
	armed time.Time
	// status is 0 until the header was written.
	status  int
	written uint64
	// err is the first error of a write: the client is gone or stopped reading.
	err error
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	w.arm()
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.arm()
	n, err := w.ResponseWriter.Write(p)
	w.written += uint64(n)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// sendFile writes what a file has, as fast as the connection can: a plain one takes it
// from the kernel's cache.
func (w *response) sendFile(file *io.LimitedReader) (int64, error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok { // HTTP/2
		return io.Copy(struct{ io.Writer }{w}, file)
	}
	w.arm()
	n, err := to.ReadFrom(file)
	w.written += uint64(n)
	// A disk's error is none of the connection.
	if err != nil && w.err == nil && !blobstore.IsReadError(err) {
		w.err = err
	}
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// started says whether any of the reply was written.
func (w *response) started() bool { return w.status != 0 }

// arm moves the connection's write deadline, not on every write but often
// enough. net/http takes it back when the request is over.
func (w *response) arm() {
	now := w.now()
	if !w.armed.IsZero() && now.Sub(w.armed) < w.idle/8 {
		return
	}
	w.armed = now
	// A connection without deadlines (in tests) has no silent client either.
	_ = w.control.SetWriteDeadline(now.Add(w.idle))
}
