package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

const patience = 10 * time.Second

// rig is a cache over blobs that are in memory.
type rig struct {
	*Cache
	t *testing.T
	// reads counts what was read from the source, by digest.
	mu       sync.Mutex // guards reads and contents
	reads    map[string]int
	contents map[string][]byte
	room     atomic.Uint64
	roomErr  error
	full     atomic.Bool
	// beforeSpace is called before a fill is told whether there is space; nil for nothing.
	beforeSpace func()
	log         bytes.Buffer
}

func start(t *testing.T, dir string, bytes uint64) *rig {
	t.Helper()
	r := &rig{t: t, reads: make(map[string]int), contents: make(map[string][]byte)}
	r.room.Store(1 << 40)
	var err error
	r.Cache, err = Open(Config{Dir: dir, Bytes: bytes, Room: func() (uint64, error) { return r.room.Load(), r.roomErr }, RequireSpace: func(int) error { return r.spaceErr() }, Logger: zerolog.New(zerolog.SyncWriter(&r.log))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func (r *rig) spaceErr() error {
	if r.beforeSpace != nil {
		r.beforeSpace()
	}
	if r.full.Load() {
		return errors.New("no space")
	}
	return nil
}

// file returns the path of a blob's file.
func (r *rig) file(digest string) string {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.cfg.Dir, blobName(digest)+serialMark+"*"))
	if err != nil || len(files) != 1 {
		r.t.Fatalf("files of %s: %v, %v", digest, files, err)
	}
	return files[0]
}

// set changes something that the cache's lock guards.
func (r *rig) set(change func()) {
	r.Cache.mu.Lock()
	defer r.Cache.mu.Unlock()
	change()
}

// checked is when the one blob was last checked.
func (r *rig) checked() time.Time {
	r.Cache.mu.Lock()
	defer r.Cache.mu.Unlock()
	_, b, _ := r.blobs.GetOldest()
	return b.checked
}

// content is that of the blob with a name.
func (r *rig) content(name string, size int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.contents[name]) != size {
		var seed [32]byte
		copy(seed[:], name)
		out := make([]byte, size)
		_, _ = rand.NewChaCha8(seed).Read(out)
		r.contents[name] = out
	}
	return r.contents[name]
}

// request is for all of a blob; wrap changes what its source returns.
func (r *rig) request(digest string, size int, worthy bool, wrap func(io.Reader) io.Reader) Request {
	all := r.content(digest, size)
	return Request{
		Digest: digest, Size: uint64(size), Length: uint64(size), Worthy: worthy,
		Source: func(ctx context.Context, offset, length uint64) (io.ReadCloser, error) {
			r.mu.Lock()
			r.reads[digest]++
			r.mu.Unlock()
			var source io.Reader = bytes.NewReader(all[offset : offset+length])
			if wrap != nil {
				source = wrap(source)
			}
			return io.NopCloser(&untilDone{ctx, source}), nil
		},
	}
}

// untilDone fails once ctx ends.
type untilDone struct {
	ctx  context.Context
	from io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, u.ctx.Err()
	}
	return u.from.Read(p)
}

// mustRead reads what a request is for, which must come from the cache if cached is set, and must not
// otherwise.
func (r *rig) mustRead(request Request, cached bool) {
	r.t.Helper()
	reader := r.Open(r.t.Context(), request)
	if (reader != nil) != cached {
		r.t.Fatalf("%s is in the cache: %t", request.Digest, reader != nil)
	}
	if reader == nil {
		return
	}
	defer reader.Close()
	got := &comparing{want: r.content(request.Digest, int(request.Size))[request.Offset:][:request.Length]}
	if _, err := reader.(io.WriterTo).WriteTo(&sender{Writer: got}); err != nil || len(got.want) > 0 {
		r.t.Errorf("read %s: %v, %d bytes are missing", request.Digest, err, len(got.want))
	}
}

// comparing fails unless what is written is what is wanted next.
type comparing struct{ want []byte }

func (c *comparing) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(c.want, p) {
		return 0, errors.New("wrong bytes")
	}
	c.want = c.want[len(p):]
	return len(p), nil
}

// sender takes files, and counts them.
type sender struct {
	io.Writer
	files int
}

func (s *sender) SendFile(file *io.LimitedReader) (int64, error) {
	s.files++
	return io.Copy(s.Writer, file)
}

func (r *rig) eventually(what string, is func(Status) bool) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !is(r.Status()); runtime.Gosched() {
		if time.Now().After(deadline) {
			r.t.Fatalf("not so: %s: %+v", what, r.Status())
		}
	}
}

// A blob comes in while it is read, and is read from its file after that, whole and in part, also after a restart.
func TestFillAndHit(t *testing.T) {
	for _, size := range []int{1, blockBytes - 1, blockBytes, blockBytes + 1, 3*blockBytes + 12345} {
		dir := t.TempDir()
		r := start(t, dir, 1<<30)
		request := r.request("sha256:a", size, true, nil)
		r.mustRead(request, true)
		r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
		r.mustRead(request, true)
		part := request
		part.Offset, part.Length = uint64(size/3), uint64(size-size/3)
		r.mustRead(part, true)
		if s := r.Status(); s.Hits != 2 || s.Misses != 1 || s.Blobs != 1 || s.Bytes != uint64(size) || r.reads["sha256:a"] != 1 {
			t.Errorf("%d bytes: %+v, read %d times", size, s, r.reads["sha256:a"])
		}
		r.Close()

		again, now := start(t, dir, 1<<30), time.Now()
		again.set(func() { again.now = func() time.Time { return now } })
		request = again.request("sha256:a", size, true, nil)
		if s := again.Status(); s.Blobs != 1 || s.Bytes != uint64(size) || !again.Has("sha256:a") {
			t.Errorf("after a restart: %+v", s)
		}
		again.mustRead(part, true)
		if size > 3*blockBytes && !again.checked().IsZero() {
			t.Error("all of it counts as sound by a part")
		}
		again.mustRead(request, true)
		// An hour later it is read through again as it is sent.
		later := now.Add(TrustInterval)
		again.set(func() { again.now = func() time.Time { return later } })
		if got := again.checked(); !got.Equal(now) {
			t.Errorf("it was checked at %s, not %s", got, now)
		}
		again.mustRead(request, true)
		if got := again.checked(); !got.Equal(later) {
			t.Errorf("it was checked at %s, not %s", got, later)
		}
		if s := again.Status(); s.Hits != 3 || again.reads["sha256:a"] > 0 {
			t.Errorf("%d bytes: %+v, read %d times", size, s, again.reads["sha256:a"])
		}
	}
}

// What was kept is used after a restart, and nothing has to give way to what is there.
func TestRestart(t *testing.T) {
	dir, names := t.TempDir(), []string{"a", "b", "c", "d", "e", "f"}
	r := start(t, dir, 8*blockBytes)
	for i, name := range names {
		r.mustRead(r.request(name, blockBytes, true, nil), true)
		r.eventually("it came in", func(s Status) bool { return s.Fills == uint64(i+1) })
	}
	r.Close()
	again := start(t, dir, 8*blockBytes)
	for _, name := range names {
		again.mustRead(again.request(name, blockBytes, true, nil), true)
	}
	if s := again.Status(); s.Hits != 6 || s.Blobs != 6 || s.Evicted > 0 || len(again.reads) > 0 {
		t.Errorf("%+v, read %v", s, again.reads)
	}
}

// What is not worthy stays the second time, if that is soon, and parts don't bring a blob in.
func TestSecondAsk(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 1000, false, nil)
	part := request
	part.Length = 10
	r.mustRead(request, true)
	r.eventually("it is gone", func(s Status) bool { return s.Passed == 1 && s.Blobs == 0 && s.Bytes == 0 })
	r.mustRead(part, false)
	now := time.Now()
	r.set(func() { r.now = func() time.Time { return now.Add(askWindow) } })
	r.mustRead(request, true)
	r.eventually("it is gone", func(s Status) bool { return s.Passed == 2 && s.Blobs == 0 })
	r.mustRead(request, true)
	r.eventually("it stays", func(s Status) bool { return s.Fills == 1 && s.Blobs == 1 })
	if files, err := os.ReadDir(r.cfg.Dir); err != nil || len(files) != 1 {
		t.Errorf("in the folder: %v, %v", files, err)
	}
}

// Many readers of one blob cost one read of the source, wherever they come in.
func TestJoin(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	const size, readers = 8 * blockBytes, 20
	begun := make(chan struct{})
	request := r.request("sha256:a", size, false, func(from io.Reader) io.Reader { <-begun; return from })
	var all sync.WaitGroup
	for range readers {
		all.Go(func() { r.mustRead(request, true) })
	}
	r.eventually("some have joined", func(s Status) bool { return s.Joins > 0 })
	close(begun)
	all.Wait()
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	if s := r.Status(); r.reads["sha256:a"] != 1 || s.Hits+s.Joins != readers-1 {
		t.Errorf("read %d times: %+v", r.reads["sha256:a"], s)
	}
}

// A reader who is alone until he has read the head of a blob goes on without the file. What he reads costs one read of the
// source, as it does with another who came before that.
func TestHead(t *testing.T) {
	const size = 6*blockBytes + 1
	for _, test := range []struct {
		name string
		// joins is after how many bytes a second reader comes; 0 for none.
		joins int
		want  Status
		reads int64
	}{
		{"alone", 0, Status{Misses: 1, Passed: 1}, size},
		{"joined in the head", 2*blockBytes - 1, Status{Misses: 1, Joins: 1, Fills: 1, Blobs: 1, Bytes: size}, size},
		{"another behind it", 2*blockBytes + 1, Status{Misses: 2, Passed: 1, Fills: 1, Blobs: 1, Bytes: size}, 2 * size},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t, t.TempDir(), 1<<30)
			r.head = 2 * blockBytes
			var read atomic.Int64
			request := r.request("sha256:a", size, false, func(from io.Reader) io.Reader { return &counting{from, &read} })
			first := r.Open(t.Context(), request)
			defer first.Close()
			var got bytes.Buffer
			if _, err := io.CopyN(&got, first, int64(test.joins)); err != nil {
				t.Fatal(err)
			}
			if test.joins > 0 {
				r.mustRead(request, true)
			}
			if _, err := io.Copy(&got, first); err != nil || !bytes.Equal(got.Bytes(), r.content("sha256:a", size)) {
				t.Errorf("got %d bytes, %v", got.Len(), err)
			}
			r.eventually("all ended", func(s Status) bool { s.LimitBytes = 0; return s == test.want })
			if read.Load() != test.reads {
				t.Errorf("%d bytes were read, not %d", read.Load(), test.reads)
			}
			if files, err := os.ReadDir(r.cfg.Dir); err != nil || len(files) != int(test.want.Blobs) {
				t.Errorf("in the folder: %v, %v", files, err)
			}
		})
	}
}

// A client that goes away after the head has ended what it began.
func TestAbandonedAtTheHead(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	r.head = 2 * blockBytes
	client := r.Open(t.Context(), r.request("sha256:a", 6*blockBytes, false, nil))
	if _, err := io.CopyN(io.Discard, client, blockBytes); err != nil {
		t.Fatal(err)
	}
	fill := client.(*reader).fill
	r.eventually("the head is there", func(Status) bool {
		fill.mu.Lock()
		defer fill.mu.Unlock()
		return fill.written == r.head
	})
	client.Close()
	r.eventually("it is given up", func(s Status) bool { return s.Abandoned == 1 && s.Blobs == 0 && s.Bytes == 0 })
}

// gate lets bytes through up to a limit, which may be raised.
type gate struct {
	from  io.Reader
	limit chan int // tokens of bytes
	have  int
}

func (g *gate) Read(p []byte) (int, error) {
	if g.have == 0 {
		more, ok := <-g.limit
		if !ok {
			return 0, errors.New("the source fails")
		}
		g.have = more
	}
	n, err := g.from.Read(p[:min(len(p), g.have)])
	g.have -= n
	return n, err
}

// A source that fails in the middle costs readers a second try of their own, from where they are.
func TestSourceFails(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	first := true
	request := r.request("sha256:a", 4*blockBytes, true, func(from io.Reader) io.Reader {
		if !first {
			return from
		}
		first = false
		g := &gate{from: from, limit: make(chan int, 1)}
		g.limit <- 2*blockBytes + 100
		close(g.limit)
		return g
	})
	r.mustRead(request, true)
	r.eventually("it failed", func(s Status) bool { return s.Failed == 1 && s.Blobs == 0 && s.Bytes == 0 })
	if files, err := os.ReadDir(r.cfg.Dir); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// A blob of another size than its record says does not come in.
func TestWrongSize(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	for size, change := range map[int]func(io.Reader) io.Reader{
		1000: func(from io.Reader) io.Reader { return io.LimitReader(from, 999) },
		2000: func(from io.Reader) io.Reader { return io.MultiReader(from, strings.NewReader("more")) },
	} {
		reader := r.Open(t.Context(), r.request(fmt.Sprint("sha256:", size), size, true, change))
		_, _ = io.Copy(io.Discard, reader)
		reader.Close()
	}
	r.eventually("both failed", func(s Status) bool { return s.Failed == 2 && s.Blobs == 0 })
}

// When nobody reads any more the fill ends, and the next reader begins another.
func TestAbandoned(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	const size = 24 * blockBytes
	reader := r.Open(t.Context(), r.request("sha256:a", size, true, nil))
	if _, err := io.CopyN(io.Discard, reader, 3*blockBytes); err != nil {
		t.Fatal(err)
	}
	reader.Close()
	r.eventually("it is given up", func(s Status) bool { return s.Abandoned == 1 && s.Blobs == 0 && s.Bytes == 0 })
	r.mustRead(r.request("sha256:a", size, true, nil), true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 && s.Bytes == size })
	if files, err := os.ReadDir(r.cfg.Dir); err != nil || len(files) != 1 {
		t.Errorf("in the folder: %v, %v", files, err)
	}
}

// counting counts what is read.
type counting struct {
	from io.Reader
	n    *atomic.Int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// A fill is not much ahead of the reader that is farthest.
func TestReadAhead(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	const size = 24 * blockBytes
	var read atomic.Int64
	request := r.request("sha256:a", size, true, func(from io.Reader) io.Reader { return &counting{from, &read} })
	slow := r.Open(t.Context(), request)
	defer slow.Close()
	if _, err := io.CopyN(io.Discard, slow, 1); err != nil {
		t.Fatal(err)
	}
	r.eventually("it is ahead", func(Status) bool { return read.Load() >= fillAhead })
	if got := read.Load(); got > fillAhead+2*blockBytes {
		t.Errorf("%d bytes were read for a reader that took one", got)
	}
	r.mustRead(request, true) // Who is faster is not held up.
	if _, err := io.Copy(io.Discard, slow); err != nil {
		t.Error(err)
	}
}

// A client that goes away is not waited for, whatever the source does.
func TestClientGone(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	g := &gate{limit: make(chan int)}
	request := r.request("sha256:a", 4*blockBytes, true, func(from io.Reader) io.Reader { g.from = from; return g })
	ctx, cancel := context.WithCancel(t.Context())
	reader := r.Open(ctx, request)
	result := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, reader); result <- err }()
	g.limit <- 100
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it waits for ever")
	}
	reader.Close()
	close(g.limit)
}

// The cache holds no more than it may, and what was not used for longest goes first. What one reader
// alone wants takes the place of nothing.
func TestBounds(t *testing.T) {
	r := start(t, t.TempDir(), 8*blockBytes) // 6 for those that stay
	take := func(name string) {
		t.Helper()
		before := r.Status().Fills
		r.mustRead(r.request(name, blockBytes, true, nil), true)
		r.eventually("it came in", func(s Status) bool { return s.Fills == before+1 })
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		take(name)
	}
	r.mustRead(r.request("a", blockBytes, true, nil), true)
	r.mustRead(r.request("once", 2*blockBytes, false, nil), true)
	r.eventually("it is gone", func(s Status) bool { return s.Passed == 1 })
	if s := r.Status(); s.Bytes != 6*blockBytes || s.Evicted != 0 {
		t.Errorf("%+v", s)
	}
	take("g")
	if s := r.Status(); s.Bytes != 6*blockBytes || s.Evicted != 1 || r.Has("b") || !r.Has("a") {
		t.Errorf("%+v", s)
	}
	r.mustRead(r.request("large", 2*blockBytes+1, true, nil), false)
	if r.Takes(2*blockBytes+1) || !r.Takes(2*blockBytes) {
		t.Error("what it takes is something else")
	}
	// As the disk fills up, the cache shrinks; as long as nobody knows how full it is, nothing comes in.
	r.room.Store(2 * blockBytes)
	r.adapt()
	if s := r.Status(); s.Bytes != 3*blockBytes || s.LimitBytes != 4*blockBytes || !r.Has("g") {
		t.Errorf("%+v", s)
	}
	if files, err := os.ReadDir(r.cfg.Dir); err != nil || len(files) != 3 {
		t.Errorf("in the folder: %v, %v", files, err)
	}
	r.roomErr = errors.New("the disk does not say")
	r.adapt()
	r.mustRead(r.request("new", 1000, true, nil), false)
	r.mustRead(r.request("g", blockBytes, true, nil), true)
	if s := r.Status(); s.Bytes != 3*blockBytes {
		t.Errorf("%+v", s)
	}
}

// What comes in for one reader alone has little room, and nothing else gives way to it.
func TestPassing(t *testing.T) {
	r := start(t, t.TempDir(), 80*blockBytes) // 20 for those
	held := make(chan struct{})
	hold := func(from io.Reader) io.Reader { <-held; return from }
	first := r.Open(t.Context(), r.request("a", 15*blockBytes, false, hold))
	r.mustRead(r.request("d", 6*blockBytes, false, hold), false)
	second := r.Open(t.Context(), r.request("b", 5*blockBytes, false, hold))
	joined := r.Open(t.Context(), r.request("a", 15*blockBytes, false, hold)) // Now a stays.
	third := r.Open(t.Context(), r.request("c", 15*blockBytes, false, hold))
	close(held)
	for _, reader := range []io.ReadCloser{first, second, joined, third} {
		if _, err := io.Copy(io.Discard, reader); err != nil {
			t.Error(err)
		}
		reader.Close()
	}
	r.eventually("all ended", func(s Status) bool { return s.Passed == 2 && s.Fills == 1 && s.Bytes == 15*blockBytes })
}

// When the disk is full to its reserve a fill ends, and its readers do not notice.
func TestNoSpace(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 6*blockBytes, true, func(from io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(from, 3*blockBytes), &onRead{from, func() { r.full.Store(true) }})
	})
	r.mustRead(request, true)
	r.eventually("it failed", func(s Status) bool { return s.Failed == 1 && s.Bytes == 0 })
}

// onRead does something before a read.
type onRead struct {
	from io.Reader
	do   func()
}

func (o *onRead) Read(p []byte) (int, error) { o.do(); return o.from.Read(p) }

// badSector fails like a disk after some bytes.
type badSector struct {
	sender
	left int64
}

func (b *badSector) SendFile(file *io.LimitedReader) (int64, error) {
	if b.left > 0 {
		n, err := b.sender.SendFile(file)
		b.left -= n
		return n, err
	}
	n, _ := io.CopyN(b.Writer, file, 100)
	return n, os.NewSyscallError("sendfile", syscall.EIO)
}

// A disk that can't read a file ends nobody's read, and the file is not used again.
func TestBadSector(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 3*blockBytes, true, nil)
	r.mustRead(request, true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	reader := r.Open(t.Context(), request)
	defer reader.Close()
	got := &comparing{want: r.content("sha256:a", 3*blockBytes)}
	if _, err := reader.(io.WriterTo).WriteTo(&badSector{sender{Writer: got}, blockBytes}); err != nil || len(got.want) > 0 {
		t.Errorf("read: %v, %d bytes are missing", err, len(got.want))
	}
	if r.Has("sha256:a") {
		t.Error("it is still used")
	}
	gone := errors.New("connection reset")
	r.mustRead(request, true)
	again := r.Open(t.Context(), request)
	defer again.Close()
	if _, err := again.(io.WriterTo).WriteTo(&failing{err: gone}); !errors.Is(err, gone) {
		t.Errorf("to a client that is gone: %v", err)
	}
}

type failing struct {
	io.Writer
	err error
}

func (f *failing) SendFile(*io.LimitedReader) (int64, error) { return 0, f.err }

// A blob that goes while it is read is read to its end.
func TestEvictedWhileRead(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 2*blockBytes, true, nil)
	r.mustRead(request, true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	reader := r.Open(t.Context(), request)
	r.Cache.mu.Lock()
	b, _ := r.blobs.Peek(blobName("sha256:a"))
	r.Cache.mu.Unlock()
	r.drop(b, errDamaged)
	got, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(got, r.content("sha256:a", 2*blockBytes)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	reader.Close()
}

// Rot in any byte of a file, and any other length, is found before any of it is sent after a start.
func TestRot(t *testing.T) {
	dir := t.TempDir()
	const size = blockBytes + 100
	r := start(t, dir, 1<<30)
	r.mustRead(r.request("sha256:a", size, true, nil), true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	r.Close()
	path := r.file("sha256:a")
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func() []byte{
		"empty": func() []byte { return nil },
		"short": func() []byte { return sound[:len(sound)-1] },
		"long":  func() []byte { return append(bytes.Clone(sound), 0) },
		"zeros": func() []byte { return make([]byte, len(sound)) },
	}
	for _, at := range []int{0, blockBytes - 1, blockBytes, size - 2, size - 1, size, size + 7, len(sound) - 1} {
		damage[fmt.Sprint("bit at ", at)] = func() []byte { rotten := bytes.Clone(sound); rotten[at] ^= 4; return rotten }
	}
	for name, rotten := range damage {
		if err := os.WriteFile(path, rotten(), 0o600); err != nil {
			t.Fatal(err)
		}
		again := start(t, dir, 1<<30)
		before := again.Status().Blobs
		part := again.request("sha256:a", size, false, nil)
		part.Length-- // so that nothing comes in
		again.mustRead(part, before > 0)
		if s := again.Status(); s.Blobs != 0 || s.Bytes != 0 || s.Rotten != before {
			t.Errorf("%s: %+v", name, s)
		}
		again.Close()
	}
}

// A file that is cut off while it is used ends nobody's read.
func TestCutOffWhileUsed(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 3*blockBytes, true, nil)
	r.mustRead(request, true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	if err := os.Truncate(r.file("sha256:a"), blockBytes+10); err != nil {
		t.Fatal(err)
	}
	r.mustRead(request, true)
	if r.Has("sha256:a") {
		t.Error("it is still used")
	}
}

// What an earlier process left unfinished is removed.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, blobName("sha256:a")+serialMark+"7"), make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir, 1<<30)
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("in the folder: %v, %v", files, err)
	}
}

func TestContentBytes(t *testing.T) {
	for _, size := range []uint64{1, blockBytes - 1, blockBytes, blockBytes + 1, 1000*blockBytes + 7} {
		file := int64(size) + int64(len(trailer(make([]uint32, blocks(size)), "a", size)))
		if got, ok := contentBytes(file); !ok || got != size {
			t.Errorf("%d bytes make a file of %d, which is taken for one of %d, %t", size, file, got, ok)
		}
	}
	if size, ok := contentBytes(footerBytes); ok {
		t.Errorf("a footer alone is taken for a blob of %d bytes", size)
	}
}
