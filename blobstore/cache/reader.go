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
	"time"
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

// SendSome hands the next bytes of a file to a Sender, at most so many, and no more than may go
// without the connection's deadline being moved. damage is set if it is the file that gave less than it
// should, err if it is the Sender that did not take it.
func SendSome(to Sender, file *os.File, most uint64) (sent int64, damage, err error) {
	part := &io.LimitedReader{R: file, N: int64(min(most, sendBytes))}
	sent, err = to.SendFile(part)
	switch {
	case err == nil && part.N > 0:
		return sent, io.ErrUnexpectedEOF, nil // The file ends before it should.
	case err != nil && IsReadError(err):
		return sent, err, nil
	}
	return sent, nil, err
}

var copyBuffers = sync.Pool{New: func() any { buffer := make([]byte, copyBytes); return &buffer }}

// reader reads what is wanted of a blob from its file, and what the file does not give from the
// source.
type reader struct {
	cache   *Cache
	ctx     context.Context
	request Request
	// blob is whose file it is. It comes in by fill if that is not nil.
	blob *blob
	fill *fill
	// waits says that the fill waits for this reader to open the file.
	waits bool
	stop  func() bool
	file  *os.File
	// position is in the blob.
	position, end uint64
	// checks says that blocks are checked before they are sent. sums are theirs, and checked is how far that was done,
	// since began.
	checks  bool
	sums    []uint32
	checked uint64
	began   time.Time
	// direct reads the rest, once the file is of no use; failed is why even that can't.
	direct io.ReadCloser
	failed error
	// left says that the file and the fill were given up.
	left, closed bool
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

// readSums reads what blocks are checked by. It fails with errDamaged, or as the disk does.
func (r *reader) readSums() (err error) {
	r.sums, err = readSums(r.file, r.blob.name, r.blob.size)
	r.checked = r.position / blockBytes * blockBytes
	return err
}

// sound returns how many bytes the file has for this reader, at least one, that need no more checking. It fails with
// errDamaged, or as the disk does.
func (r *reader) sound() (bytes uint64, err error) {
	if !r.checks {
		return r.end - r.position, nil
	}
	if r.position >= r.checked {
		buffer := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buffer)
		block := r.checked / blockBytes
		if err := checkBlock(r.file, r.blob.size, block, r.sums[block], *buffer); err != nil {
			return 0, err
		}
		r.checked = min(r.checked+blockBytes, r.blob.size)
		if r.request.Offset < blockBytes && r.checked == r.blob.size {
			r.cache.trust(r.blob, r.began)
		}
	}
	return min(r.checked, r.end) - r.position, nil
}

// ready returns how many bytes the file has for this reader now; 0 if it has to go on with direct.
func (r *reader) ready() (bytes uint64, err error) {
	if r.direct != nil || r.failed != nil {
		return 0, r.failed
	}
	if r.fill == nil {
		bytes, err := r.sound()
		if err != nil {
			err = r.distrust(err)
		}
		return bytes, err
	}
	written, err := r.fill.await(r.ctx, r.position)
	if err == nil && r.file == nil {
		err = r.open(r.blob.path)
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
func (r *reader) turnAway() error {
	_ = r.leave() // It was only read.
	r.direct, r.failed = r.request.Source(r.ctx, r.position, r.end-r.position)
	return r.failed
}

// distrust is turnAway for a file that gives less than it has, or something else.
func (r *reader) distrust(err error) error {
	r.cache.drop(r.blob, err)
	return r.turnAway()
}

// leave gives up the file, and the fill.
func (r *reader) leave() (err error) {
	if r.left {
		return nil
	}
	r.left = true
	if r.fill != nil {
		r.stop()
		r.hold()
		r.fill.leave()
	}
	if r.file != nil {
		err = r.file.Close()
	}
	r.cache.release(r.blob)
	return err
}

// euclean is what file systems of Linux say of their own damage (EUCLEAN).
const euclean = syscall.Errno(117)

// IsReadError says whether an error of a Sender is of the file, not of where it was sent.
func IsReadError(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EBADMSG) || errors.Is(err, euclean)
}

// isShortage says whether a file could not be opened for what the process lacks, which says nothing of the file.
func isShortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
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
		n, damage, err := SendSome(sender, r.file, bytes)
		written += n
		r.position += uint64(n)
		if err == nil && damage != nil {
			err = r.distrust(damage)
		}
		if err != nil {
			return written, err
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
	err := r.leave()
	if r.direct != nil {
		err = errors.Join(err, r.direct.Close())
	}
	return err
}
