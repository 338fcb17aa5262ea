// Package cache keeps whole blobs on a node's disk, to send them from there with as little
// work as a file server has. What is here is a copy of what shards hold: it may be dropped at
// any time, and is not made durable.
//
// A blob comes in while the first client reads it (fill.go): one goroutine writes the file, and
// all clients that ask for the blob meanwhile follow it, each from where it is. So many readers cost
// one read of the shards. If nobody else has asked for it by the end it goes again, before the disk has
// seen much of it, so that what is read once does not take the place of what is read often. Every file has
// a checksum for each of its blocks (file.go), by which it is checked before it is first used after a
// start, and again once an hour.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/rs/zerolog"
)

const (
	// blobShare is the part of the cache, one in so many bytes, that one blob may take.
	blobShare = 4
	// roomShare is the part of what is free, the cache included, that the cache may take: one in
	// so many bytes. So it gives way to shards as the disk fills up.
	roomShare = 2
	// roomInterval is how often the cache looks how much room there is.
	roomInterval = 10 * time.Second
	// maxFills bounds the blobs that come in at once.
	maxFills = 32
	// maxAsks bounds the blobs of which it is known when they were last asked for, and askWindow
	// is how long that counts: a blob that is asked for twice in that time is kept.
	maxAsks   = 8192
	askWindow = 10 * time.Minute
	// checkInterval is how long a file is sent without being read through again.
	checkInterval = time.Hour
	// unfinishedPrefix begins the names of files that are being written.
	unfinishedPrefix = "tmp-"
)

// Config is what a cache needs to know.
type Config struct {
	// Dir is the folder. It is made if need be, and all that is in it belongs to the cache.
	Dir string
	// Bytes bounds what the cache holds.
	Bytes uint64
	// Room returns the bytes of the file system that are free and may be used.
	Room   func() (uint64, error)
	Logger zerolog.Logger
}

// Source reads length bytes of a blob from offset on, without the cache. What it returns is
// verified, or ends in an error.
type Source func(ctx context.Context, offset, length uint64) (io.ReadCloser, error)

// Status is what is in a cache, and what has come of it.
type Status struct {
	// Blobs are whole, or coming in; Bytes are theirs, and LimitBytes what they may be now.
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
	// limit is what the cache may hold now.
	limit atomic.Uint64
	// checks has room for one: so many files are read through at once.
	checks chan struct{}
	ctx    context.Context
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu sync.Mutex // guards what follows
	// blobs are whole, the one that was not used for longest first; fills are coming in.
	blobs *simplelru.LRU[string, *blob]
	fills map[string]*fill
	// used are the bytes of both.
	used   uint64
	asks   *simplelru.LRU[string, time.Time]
	serial uint64
	status Status
	closed bool
}

// blob is a file that is whole.
type blob struct {
	name string
	size uint64
	// checked is when it was last known to be sound; zero after a start.
	checked  time.Time
	checking bool
}

// Open opens the cache with what an earlier process has left in the folder.
func Open(cfg Config) (*Cache, error) {
	c := &Cache{cfg: cfg, now: time.Now, checks: make(chan struct{}, 1), fills: make(map[string]*fill)}
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
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		size, ok := contentBytes(info.Size())
		if !ok || !entry.Type().IsRegular() || strings.HasPrefix(entry.Name(), unfinishedPrefix) {
			if err := os.RemoveAll(filepath.Join(c.cfg.Dir, entry.Name())); err != nil {
				return err
			}
			continue
		}
		c.blobs.Add(entry.Name(), &blob{name: entry.Name(), size: size})
		c.used += size
	}
	return nil
}

// Run keeps the cache within its bounds until ctx ends.
func (c *Cache) Run(ctx context.Context) {
	ticker := time.NewTicker(roomInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.adapt()
		case <-ctx.Done():
			return
		}
	}
}

// adapt finds out how much the cache may hold, and drops what is more.
func (c *Cache) adapt() {
	room, err := c.cfg.Room()
	if err != nil {
		room = 0
	}
	c.mu.Lock()
	limit := min(c.cfg.Bytes, (room+c.used)/roomShare)
	c.limit.Store(limit)
	dropped := c.makeRoom(0, limit)
	c.mu.Unlock()
	c.remove(dropped)
}

// makeRoom forgets blobs until so many bytes more fit, and returns their names. The caller
// holds the lock, and removes the files when it does not.
func (c *Cache) makeRoom(bytes, limit uint64) (dropped []string) {
	for c.used+bytes > limit {
		name, oldest, ok := c.blobs.RemoveOldest()
		if !ok {
			break
		}
		c.used -= oldest.size
		c.status.Evicted++
		dropped = append(dropped, name)
	}
	return dropped
}

func (c *Cache) remove(names []string) {
	for _, name := range names {
		if err := os.Remove(c.path(name)); err != nil {
			c.cfg.Logger.Warn().Err(err).Msg("could not remove a file of the cache")
		}
	}
}

// fileName is what the file of a blob is called.
func fileName(digest string) string { return strings.ReplaceAll(digest, ":", "-") }

func (c *Cache) path(name string) string { return filepath.Join(c.cfg.Dir, name) }

// Has says whether a blob is here, and sound as far as is known.
func (c *Cache) Has(digest string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.blobs.Peek(fileName(digest))
	return ok && c.isFresh(b)
}

func (c *Cache) isFresh(b *blob) bool {
	return !b.checked.IsZero() && c.now().Sub(b.checked) < checkInterval
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

// whole says that all of the blob is wanted.
func (r *Request) whole() bool { return r.Offset == 0 && r.Length == r.Size }

// Open returns a reader of what is wanted, if the blob is here or comes in now; nil if
// the caller has to read it without the cache. The reader must be closed, and is for one
// goroutine. It also has WriteTo, which hands the file to a writer that has SendFile.
func (c *Cache) Open(ctx context.Context, r Request) io.ReadCloser {
	name := fileName(r.Digest)
	c.mu.Lock()
	if b, ok := c.blobs.Get(name); ok {
		usable := b.size == r.Size && c.isFresh(b)
		if !usable {
			c.status.Misses++
			c.check(b)
		}
		c.mu.Unlock()
		switch {
		case usable:
			return c.openBlob(ctx, r, name)
		case b.size != r.Size: // The file was cut, or made longer.
			c.drop(name)
		}
		return nil
	}
	f, dropped := c.join(name, &r)
	c.mu.Unlock()
	c.remove(dropped)
	if f == nil {
		return nil
	}
	return newReader(ctx, c, r, f)
}

// openBlob returns a reader of a blob that is whole; nil if it has just been dropped.
func (c *Cache) openBlob(ctx context.Context, r Request, name string) io.ReadCloser {
	reader := newReader(ctx, c, r, nil)
	err := reader.open(c.path(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.status.Misses++
		return nil
	}
	c.status.Hits++
	return reader
}

// join returns the fill of a blob, with this reader counted, and begins one if there
// is none and the blob is worth it. The caller holds the lock, and removes the files dropped.
func (c *Cache) join(name string, r *Request) (f *fill, dropped []string) {
	if f = c.fills[name]; f != nil && r.whole() && f.size == r.Size && f.enter() {
		f.keep = true
		c.status.Joins++
		return f, nil
	}
	c.status.Misses++
	limit := c.limit.Load()
	if c.closed || f != nil || !r.whole() || r.Size > limit/blobShare || len(c.fills) >= maxFills {
		return nil, nil
	}
	dropped = c.makeRoom(r.Size, limit)
	if c.used+r.Size > limit {
		return nil, dropped
	}
	c.used += r.Size
	c.serial++
	f = newFill(c, name, c.path(fmt.Sprintf("%s%d", unfinishedPrefix, c.serial)), r)
	f.keep = c.ask(name) || r.Worthy
	c.fills[name] = f
	c.work.Go(f.run)
	return f, dropped
}

// ask notes that a blob was asked for, and says whether it was before, not long ago. The caller holds
// the lock.
func (c *Cache) ask(name string) bool {
	now := c.now()
	last, known := c.asks.Get(name)
	c.asks.Add(name, now)
	return known && now.Sub(last) < askWindow
}

// isKept says whether a fill that is whole stays. If not, nobody joins it any more.
func (c *Cache) isKept(f *fill) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !f.keep && c.fills[f.name] == f {
		delete(c.fills, f.name)
	}
	return f.keep
}

// settle ends a fill: its blob is here from now on, or it failed.
func (c *Cache) settle(f *fill, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fills[f.name] == f {
		delete(c.fills, f.name)
	}
	if err != nil {
		c.used -= f.size
		switch {
		case errors.Is(err, errPassed):
			c.status.Passed++
		case f.ctx.Err() != nil:
			c.status.Abandoned++
		default:
			c.status.Failed++
		}
		return
	}
	if old, ok := c.blobs.Peek(f.name); ok { // Its file has been replaced.
		c.used -= old.size
	}
	c.blobs.Add(f.name, &blob{name: f.name, size: f.size, checked: c.now()})
	c.status.Fills++
}

// abandon forgets a fill that nobody follows any more, so that the next reader begins another.
func (c *Cache) abandon(f *fill) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fills[f.name] == f {
		delete(c.fills, f.name)
	}
}

// drop forgets a blob whose file is not what it should be.
func (c *Cache) drop(name string) {
	c.mu.Lock()
	b, ok := c.blobs.Peek(name)
	if ok {
		c.blobs.Remove(name)
		c.used -= b.size
		c.status.Rotten++
	}
	c.mu.Unlock()
	if ok {
		c.remove([]string{name})
	}
}

// check has a file read through, unless that is going on. The caller holds the lock.
func (c *Cache) check(b *blob) {
	if b.checking || c.closed {
		return
	}
	b.checking = true
	c.work.Go(func() {
		select {
		case c.checks <- struct{}{}:
			defer func() { <-c.checks }()
		case <-c.ctx.Done():
			return
		}
		err := checkFile(c.ctx, c.path(b.name), b.size)
		if c.ctx.Err() != nil {
			return
		}
		if err != nil {
			c.cfg.Logger.Warn().Err(err).Str("blob", b.name).Msg("a blob in the cache is not what it was, and is dropped")
			c.drop(b.name)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		b.checking, b.checked = false, c.now()
	})
}

// Status tells of the cache.
func (c *Cache) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Blobs, s.Bytes, s.LimitBytes = uint64(c.blobs.Len()+len(c.fills)), c.used, c.limit.Load()
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
