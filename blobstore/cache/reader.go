package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
)

const (
	// sendBytes is how much of a file is handed to a connection at once, so that its deadline is
	// moved often enough for slow clients.
	sendBytes = 256 << 10
	// copyBytes is how much is copied at once where a connection can't take a file.
	copyBytes = 64 << 10
)

// Sender is what takes bytes from a file without having them copied. How much it took it says
// also when it fails.
type Sender interface {
	SendFile(file *io.LimitedReader) (int64, error)
}

var copyBuffers = sync.Pool{New: func() any { buffer := make([]byte, copyBytes); return &buffer }}

// reader reads what is wanted of a blob from its file, and what the file does not give from the
// source.
type reader struct {
	cache   *Cache
	ctx     context.Context
	request Request
	// blob is whose file it is; nil if that comes in, by fill.
	blob *blob
	fill *fill
	// waits says that the fill waits for this reader to open the file.
	waits bool
	stop  func() bool
	file  *os.File
	// position is in the blob.
	position, end uint64
	// direct reads the rest, once the file is of no use.
	direct io.ReadCloser
	closed bool
}

func newReader(ctx context.Context, c *Cache, r Request, b *blob, f *fill) *reader {
	one := &reader{cache: c, ctx: ctx, request: r, blob: b, fill: f, waits: f != nil, position: r.Offset, end: r.Offset + r.Length}
	if f != nil {
		one.stop = context.AfterFunc(ctx, f.wake)
	}
	return one
}

// open opens the file at the position.
func (r *reader) open(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	if _, err := file.Seek(int64(r.position), io.SeekStart); err != nil {
		return errors.Join(err, file.Close())
	}
	r.file = file
	return nil
}

// ready returns how many bytes the file has for this reader now; 0 if it has to go on with direct.
func (r *reader) ready() (bytes uint64, err error) {
	if r.direct != nil {
		return 0, nil
	}
	if r.fill == nil {
		return r.end - r.position, nil
	}
	written, err := r.fill.await(r.ctx, r.position)
	if err == nil && r.file == nil {
		err = r.open(r.fill.path)
		r.hold()
	}
	if err == nil {
		return min(written, r.end) - r.position, nil
	}
	if r.ctx.Err() != nil {
		return 0, fmt.Errorf("read blob: %w", context.Cause(r.ctx))
	}
	return 0, r.turnAway()
}

// hold lets the fill go on.
func (r *reader) hold() {
	if r.waits {
		r.waits = false
		r.fill.opened()
	}
}

// turnAway goes on without the file.
func (r *reader) turnAway() (err error) {
	r.hold()
	r.direct, err = r.request.Source(r.ctx, r.position, r.end-r.position)
	return err
}

// distrust is turnAway for a file that gives less than it has.
func (r *reader) distrust(err error) error {
	if r.blob != nil {
		r.cache.drop(r.blob, err)
	}
	return r.turnAway()
}

// euclean is what file systems of Linux say of their own damage (EUCLEAN).
const euclean = syscall.Errno(117)

// IsReadError says whether an error of a Sender is of the file, not of where it was sent.
func IsReadError(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EBADMSG) || errors.Is(err, euclean)
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.closed {
		return 0, fs.ErrClosed
	}
	if r.position == r.end {
		return 0, io.EOF
	}
	bytes, err := r.ready()
	if err != nil {
		return 0, err
	}
	if r.direct == nil {
		n, err := r.file.Read(p[:min(uint64(len(p)), bytes)])
		r.position += uint64(n)
		if n > 0 {
			return n, nil
		}
		if err := r.distrust(err); err != nil {
			return 0, err
		}
	}
	n, err := r.direct.Read(p)
	r.position += uint64(n)
	if errors.Is(err, io.EOF) && r.position < r.end {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// WriteTo implements io.WriterTo. It hands the file to a Sender.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	sender, ok := w.(Sender)
	if !ok {
		buffer := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buffer)
		return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buffer)
	}
	for r.position < r.end {
		bytes, err := r.ready()
		if err != nil {
			return written, err
		}
		if r.direct != nil {
			n, err := io.Copy(w, r.direct)
			r.position += uint64(n)
			if err == nil && r.position < r.end {
				err = io.ErrUnexpectedEOF
			}
			return written + n, err
		}
		part := &io.LimitedReader{R: r.file, N: int64(min(bytes, sendBytes))}
		n, err := sender.SendFile(part)
		written += n
		r.position += uint64(n)
		if err == nil && part.N > 0 {
			err = io.ErrUnexpectedEOF // The file ends before it should.
		} else if err != nil && !IsReadError(err) {
			return written, err
		}
		if err != nil {
			if err := r.distrust(err); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// Close ends the reader. It may be called again.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	var err error
	if r.fill != nil {
		r.stop()
		r.hold()
		r.fill.leave()
	}
	if r.direct != nil {
		err = r.direct.Close()
	}
	if r.file != nil {
		err = errors.Join(err, r.file.Close())
	}
	return err
}
