// Package cache keeps whole blobs on a node's disk, to send them from there with as little
// work as a file server has. What is here is a copy of what shards hold: it may be dropped at
// any time.
//
// A blob comes in while the first client reads it (fill.go): one goroutine writes the file, and
// all clients that ask for the blob meanwhile follow it, each from where it is. So many readers cost
// one read of the shards. If nobody else has asked for it while the first client reads its head, or by the end, it goes again, so that what is read once does not take the place of what is read often. Every file has
// a checksum for each of its blocks (file.go), by which blocks are checked as they are sent: all those of a file that
// was not read through since the start, or not for an hour.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/rs/zerolog"
)

const (
	// maxFills bounds the blobs that come in at once, those included that nobody waits for any more but that hang
	// in a disk.
	maxFills = 32
	// maxAsks bounds the blobs of which it is known when they were last asked for, and askWindow
	// is how long that counts: a blob that is asked for twice in that time is kept.
	maxAsks   = 8192
	askWindow = 10 * time.Minute
	// TrustInterval is how long a file that was read through is sent without being checked again.
	TrustInterval = time.Hour
)

// Config is what a cache needs to know.
type Config struct {
	// Dir is the folder. It is made if need be, and all that is in it belongs to the cache.
	Dir string
	// Bytes bounds what the cache holds.
	Bytes uint64
	// Room returns the bytes of the file system that are free and may be used. While it fails nothing
	// comes in.
	Room func() (uint64, error)
	// RequireSpace fails unless so many bytes may be written now. It is asked for every block.
	RequireSpace func(bytes int) error
	Logger       zerolog.Logger
}

// Source reads length bytes of a blob from offset on, without the cache. What it returns is
// verified, or ends in an error.
type Source func(ctx context.Context, offset, length uint64) (io.ReadCloser, error)

// Status is what is in a cache, and what has come of it.
type Status struct {
	// Blobs are whole, or coming in; Bytes are theirs on the disk, with those of files that are gone for all but
	// their readers, and LimitBytes what they may be now.
	Blobs, Bytes, LimitBytes uint64
	// Hits are reads of a blob that was here, Joins those of one that was just coming in, Misses
	// those of neither.
	Hits, Joins, Misses uint64
	// Fills are blobs that came in and stayed, Passed those that one reader alone wanted, Abandoned those whose readers went away before, Failed those that did
	// not come in for another reason, Evicted those that gave way to others, and Rotten those that were
	// not any more what they had been.
	Fills, Passed, Abandoned, Failed, Evicted, Rotten uint64
}

// Cache keeps whole blobs. It is safe for concurrent use.
type Cache struct {
	cfg Config
	now func() time.Time
	// patience is fillPatience, and head headBytes, less in tests.
	patience time.Duration
	head     uint64

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu sync.Mutex // guards what follows
	// blobs are whole, the one that was not used for longest first; fills are coming in, and can be joined. running
	// counts all that have not ended.
	blobs   *simplelru.LRU[string, *blob]
	fills   map[string]*fill
	running int
	space   space
	asks    *simplelru.LRU[string, time.Time]
	serial  uint64
	status  Status
	closed  bool
}

// blob is a file, whole or coming in. The cache's lock guards what changes.
type blob struct {
	name, path string
	size       uint64
	// held is what it has on the disk.
	held uint64
	// checked is when all of it was last known to be sound; zero after a start.
	checked time.Time
	// users are readers that may have it open, and gone says that it has no name any more: what is held comes free
	// when the last of them is done.
	users int
	gone  bool
}

// Open opens the cache with what an earlier process has left in the folder.
func Open(cfg Config) (*Cache, error) {
	c := &Cache{cfg: cfg, now: time.Now, patience: fillPatience, head: headBytes, fills: make(map[string]*fill)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	var err error
	if c.blobs, err = simplelru.NewLRU[string, *blob](math.MaxInt, nil); err == nil {
		c.asks, err = simplelru.NewLRU[string, time.Time](maxAsks, nil)
	}
	if err == nil {
		err = c.load()
	}
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", cfg.Dir, err)
	}
	c.adapt()
	return c, nil
}

// load finds out what is in the folder, and removes what is of no use.
func (c *Cache) load() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	type found struct {
		*blob
		changed time.Time
	}
	var all []found
	for _, entry := range entries {
		path := filepath.Join(c.cfg.Dir, entry.Name())
		name, serial, ok := strings.Cut(entry.Name(), serialMark)
		number, err := strconv.ParseUint(serial, 10, 64)
		info, infoErr := entry.Info()
		if !ok || err != nil || infoErr != nil || !entry.Type().IsRegular() {
			continue // not the cache's
		}
		c.serial = max(c.serial, number)
		size, err := fileBlobBytes(path, name)
		if err != nil { // It was not finished.
			c.unlink(path)
			continue
		}
		all = append(all, found{&blob{name: name, path: path, size: size, held: size}, info.ModTime()})
	}
	slices.SortFunc(all, func(a, b found) int { return a.changed.Compare(b.changed) })
	for _, one := range all {
		c.unlink(c.put(one.blob)...)
		c.space.kept += one.size
	}
	return nil
}

// serialMark is between the name of a blob and the number of its file: no two files have had the
// same name, so that whoever removes one late removes no other.
const serialMark = "."

// put makes a blob known, and returns the path of the one that it takes the place of. The caller
// counts its bytes, and holds the lock.
func (c *Cache) put(b *blob) (dropped []string) {
	if old, ok := c.blobs.Peek(b.name); ok {
		c.space.kept -= old.held
		c.retire(old)
		dropped = append(dropped, old.path)
	}
	c.blobs.Add(b.name, b)
	return dropped
}

func (c *Cache) unlink(paths ...string) {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.cfg.Logger.Warn().Err(err).Msg("could not remove a file of the cache")
		}
	}
}

// blobName is what a blob is called in the cache.
func blobName(digest string) string { return strings.ReplaceAll(digest, ":", "-") }

// Has says whether a blob is here.
func (c *Cache) Has(digest string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blobs.Contains(blobName(digest))
}

// Takes says whether a blob of so many bytes could come in.
func (c *Cache) Takes(size uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.space.paused && size <= c.space.limit/blobShare
}

// trusts says whether a blob is sent without being checked. The caller holds the lock.
func (c *Cache) trusts(b *blob) bool {
	return !b.checked.IsZero() && c.now().Sub(b.checked) < TrustInterval
}

// Request is what is wanted of a blob.
type Request struct {
	Digest string
	// Size is the blob's, Offset and Length say which bytes of it are wanted.
	Size, Offset, Length uint64
	// Worthy says that the blob should stay; otherwise it does if it is asked for whole a second time.
	Worthy bool
	Source Source
}

// Whole says that all of the blob is wanted.
func (r *Request) Whole() bool { return r.Offset == 0 && r.Length == r.Size }

// Open returns a reader of what is wanted, if the blob is here or comes in now; nil if
// the caller has to read it without the cache. The reader must be closed, and is for one
// goroutine. It also has WriteTo, which hands the file to a Sender.
func (c *Cache) Open(ctx context.Context, r Request) io.ReadCloser {
	name := blobName(r.Digest)
	c.mu.Lock()
	if b, ok := c.blobs.Get(name); ok && b.size == r.Size {
		b.users++
		reader := newReader(ctx, c, r, b, nil)
		reader.began, reader.checks = c.now(), !c.trusts(b)
		c.mu.Unlock()
		return c.openBlob(reader)
	}
	f := c.join(name, &r)
	c.mu.Unlock()
	if f == nil {
		return nil
	}
	return newReader(ctx, c, r, f.blob, f)
}

// openBlob returns a reader of a blob that is whole once it has the file; nil if that can't be had.
func (c *Cache) openBlob(r *reader) io.ReadCloser {
	err := r.open(r.blob.path)
	if err == nil && r.checks {
		err = r.readSums()
	}
	if err != nil {
		_ = r.Close() // It was not read.
		if !isShortage(err) {
			c.drop(r.blob, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.status.Misses++
		return nil
	}
	c.status.Hits++
	return r
}

// join returns the fill of a blob, with this reader counted, and begins one if there
// is none and there is room. The caller holds the lock.
func (c *Cache) join(name string, r *Request) *fill {
	if f := c.fills[name]; f != nil && r.Whole() && f.blob.size == r.Size && f.enter() {
		c.status.Joins++
		f.blob.users++
		c.keep(f)
		return f
	}
	c.status.Misses++
	if c.fills[name] != nil || c.closed || c.space.paused || !r.Whole() || r.Size > c.space.limit/blobShare || c.running >= maxFills {
		return nil
	}
	stays := c.ask(name) || r.Worthy
	if !(stays && c.space.keeps(r.Size)) && !c.space.passes(r.Size) {
		return nil
	}
	c.serial++
	path := filepath.Join(c.cfg.Dir, name+serialMark+strconv.FormatUint(c.serial, 10))
	f := newFill(c, &blob{name: name, path: path, size: r.Size, users: 1}, r.Source)
	c.space.toPass += r.Size
	if stays {
		c.keep(f)
	}
	c.fills[name] = f
	c.running++
	c.work.Go(f.run)
	return f
}

// ask notes that a blob was asked for, and says whether it was before, not long ago. The caller holds
// the lock.
func (c *Cache) ask(name string) bool {
	now := c.now()
	last, known := c.asks.Get(name)
	c.asks.Add(name, now)
	return known && now.Sub(last) < askWindow
}

// stays says whether a fill stays, as far as is known.
func (c *Cache) stays(f *fill) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f.keep
}

// isKept says whether a fill stays. If not, nobody joins it any more.
func (c *Cache) isKept(f *fill) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.keep {
		c.forget(f)
	}
	return f.keep
}

// forget takes a fill off, so that nobody joins it any more. The caller holds the lock.
func (c *Cache) forget(f *fill) {
	if c.fills[f.blob.name] == f {
		delete(c.fills, f.blob.name)
	}
}

// settle ends a fill: its blob is here from now on, or it failed, and its file has no name any more.
func (c *Cache) settle(f *fill, err error) {
	c.mu.Lock()
	c.forget(f)
	c.running--
	var dropped []string
	if err == nil {
		c.status.Fills++
		f.blob.checked = c.now()
		c.space.toKeep -= f.blob.size
		dropped = append(c.put(f.blob), c.makeRoom(false)...)
	} else {
		c.countFailure(err)
		c.space.paused = c.space.paused || f.refused
		c.discard(f)
	}
	c.mu.Unlock()
	c.unlink(dropped...)
}

func (c *Cache) countFailure(err error) {
	switch {
	case errors.Is(err, errPassed):
		c.status.Passed++
	case errors.Is(err, errAbandoned):
		c.status.Abandoned++
	default:
		c.status.Failed++
	}
}

// abandon forgets a fill that nobody follows any more, so that the next reader begins another.
func (c *Cache) abandon(f *fill) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(f)
}

// drop forgets a blob whose file can't be read, or is not what it should be. One that was evicted
// meanwhile is no loss.
func (c *Cache) drop(b *blob, why error) {
	c.mu.Lock()
	current, ok := c.blobs.Peek(b.name)
	dropped := ok && current == b
	if dropped {
		c.blobs.Remove(b.name)
		c.space.kept -= b.held
		c.retire(b)
		c.status.Rotten++
	}
	c.mu.Unlock()
	if dropped {
		c.cfg.Logger.Warn().Err(why).Str("blob", b.name).Msg("a blob in the cache can't be read as it was written, and is dropped")
		c.unlink(b.path)
	}
}

// trust notes that all of a blob was found sound, from some time on.
func (c *Cache) trust(b *blob, began time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.checked = began
}

// Status tells of the cache.
func (c *Cache) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Blobs, s.Bytes, s.LimitBytes = uint64(c.blobs.Len()+len(c.fills)), c.space.stored(), c.space.limit
	return s
}

// Close ends what goes on, and waits for it. Readers go on with what is there.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.work.Wait()
}
