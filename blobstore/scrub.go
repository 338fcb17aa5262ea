package blobstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/atollregistry/atoll/proto"
)

const (
	// scrubFile has the progress of the scrub, in the shard folder.
	scrubFile = "scrub.json"
	// minScrubBytesPerSecond lets a node with little to read be done early.
	minScrubBytesPerSecond = 1 << 20
	// scrubFileBytes is what reading a shard costs of the pace at least: to open a file
	// takes a disk about as long as to read so much of it.
	scrubFileBytes = 64 << 10
	// scrubPause is how long to wait before a pass that failed goes on.
	scrubPause = time.Minute
)

// ScrubStatus is how far a node is with reading its shards again.
type ScrubStatus struct {
	// Running: a pass is under way.
	Running bool
	// Done is the part of the pass that is behind, 0 to 1.
	Done float64
	// Current is the pass under way, or the last one; Last the last that has ended.
	Current, Last ScrubPass
}

// ScrubPass is one look at all shards of a node. Its JSON form is that of the file
// in which the scrub keeps its progress.
type ScrubPass struct {
	Started time.Time `json:"started"`
	// Ended is zero while the pass is under way.
	Ended time.Time `json:"ended"`
	// Shards and Bytes were read.
	Shards uint64 `json:"shards"`
	Bytes  uint64 `json:"bytes"`
	// Damaged shards were not what had been written, Missing ones were not there.
	Damaged uint64 `json:"damaged"`
	Missing uint64 `json:"missing"`
}

// scrubProgress is what outlives the process.
type scrubProgress struct {
	Current ScrubPass `json:"current"`
	Last    ScrubPass `json:"last"`
	// Folder is the next shard folder of the current pass.
	Folder int `json:"folder"`
	// Fast: somebody waits for the pass.
	Fast bool `json:"fast"`
}

// scrub reads this node's shards again and again, slowly, and compares the records
// with the files, so that what has rotted or gone is found before it is needed. It
// only reports: who repairs looks for itself.
type scrub struct {
	store *Store
	disks *disks
	node  string
	log   zerolog.Logger
	// period is the time for one pass, maxRate its bytes a second at most. A shard counts
	// for scrubFileBytes at least.
	period  time.Duration
	maxRate uint64
	now     func() time.Time
	limiter *rate.Limiter

	// wanted gets a value when somebody has begun a pass, look when somebody wants the
	// files to be compared with the records.
	wanted, look chan struct{}
	// read counts the bytes read since the process started.
	read atomic.Uint64

	mu       sync.Mutex // guards progress
	progress scrubProgress
}

func newScrub(s *Store) *scrub {
	c := &scrub{
		store: s, disks: s.disks, node: s.cluster.Self(), log: s.log, period: s.cfg.ScrubPeriod, maxRate: s.cfg.ScrubBytesPerSecond, now: time.Now,
		limiter: rate.NewLimiter(rate.Inf, maxReadBytes),
		wanted:  make(chan struct{}, 1), look: make(chan struct{}, 1),
	}
	if err := c.load(); err != nil {
		c.log.Warn().Err(err).Msg("progress of the scrub is lost, beginning anew")
		c.progress = scrubProgress{}
	}
	return c
}

// ScrubNow has this node read all its shards now, as fast as the configuration
// allows. A pass that is under way begins anew.
func (s *Store) ScrubNow() {
	s.scrub.begin(true)
	select {
	case s.scrub.wanted <- struct{}{}:
	default: // it knows already
	}
}

// ScrubStatus returns how far the scrub of this node is.
func (s *Store) ScrubStatus() ScrubStatus {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	p := &s.scrub.progress
	running := !p.Current.Started.IsZero() && p.Current.Ended.IsZero()
	status := ScrubStatus{Running: running, Current: p.Current, Last: p.Last}
	if running {
		status.Done = float64(p.Folder) / shardFolders
	}
	return status
}

// tellScrub is what the store tells other nodes and its operator, for whom times are
// numbers.
func (s *Store) tellScrub(now bool) *proto.ScrubResponse {
	if now {
		s.ScrubNow()
	}
	status := s.ScrubStatus()
	return &proto.ScrubResponse{
		Running: status.Running, DonePermille: uint32(status.Done * 1000),
		Current: status.Current.message(), Last: status.Last.message(),
	}
}

func (p ScrubPass) message() *proto.ScrubPass {
	unixMS := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMilli()
	}
	return &proto.ScrubPass{
		StartedUnixMs: unixMS(p.Started), EndedUnixMs: unixMS(p.Ended),
		Shards: p.Shards, Bytes: p.Bytes, Damaged: p.Damaged, Missing: p.Missing,
	}
}

// ScrubOn asks a node, which may be this one, for its scrub, and has it begin a pass
// if that is wanted.
func (s *Store) ScrubOn(ctx context.Context, node string, now bool) (*proto.ScrubResponse, error) {
	if node == s.cluster.Self() {
		return s.tellScrub(now), nil
	}
	conn, err := s.connTo(node)
	if err != nil {
		return nil, err
	}
	answer, err := proto.NewShardsClient(conn).Scrub(ctx, &proto.ScrubRequest{Now: now})
	return answer, fromStatus(err)
}

// CompareShards has this node look at once whether all shards are there that the
// records say it has.
func (s *Store) CompareShards() {
	select {
	case s.scrub.look <- struct{}{}:
	default:
	}
}

// errWanted ends a pass because somebody wants another one, from the start.
var errWanted = errors.New("another pass is wanted")

// run scrubs until ctx ends.
func (c *scrub) run(ctx context.Context) {
	c.compareNow(ctx)
	for ctx.Err() == nil {
		wait := c.untilNext()
		if wait <= 0 {
			err := c.pass(ctx)
			if err == nil || errors.Is(err, errWanted) {
				continue
			}
			if ctx.Err() == nil {
				c.log.Warn().Err(err).Msg("scrub stopped early, going on later")
			}
			wait = scrubPause
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-c.wanted:
		case <-c.look:
			c.compareNow(ctx)
		}
		timer.Stop()
	}
}

// untilNext is how long to wait for the next pass, nothing if one is under way. If the
// last one is said to begin only in the future, the clock has been set back: how long
// ago it was is not known, and the next one begins now.
func (c *scrub) untilNext() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	current := c.progress.Current
	switch {
	case !current.Started.IsZero() && current.Ended.IsZero():
		return 0
	case c.period == 0:
		return scrubPause // Only on request.
	case current.Started.IsZero():
		c.progress = scrubProgress{Current: ScrubPass{Started: c.now()}}
		return 0
	}
	now := c.now()
	wait := c.period - now.Sub(current.Started)
	if current.Started.After(now) {
		wait = 0
	}
	if wait <= 0 {
		c.progress.Folder, c.progress.Fast, c.progress.Current = 0, false, ScrubPass{Started: now}
	}
	return wait
}

// begin begins a pass in the place of one that may be under way.
func (c *scrub) begin(fast bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress.Folder, c.progress.Fast, c.progress.Current = 0, fast, ScrubPass{Started: c.now()}
}

// pass reads the shards, from the folder on where the last pass was cut off. It
// ends with errWanted when another one is begun meanwhile.
func (c *scrub) pass(ctx context.Context) error {
	c.mu.Lock()
	started, folder, fast := c.progress.Current.Started, c.progress.Folder, c.progress.Fast
	c.mu.Unlock()
	if folder == 0 {
		missing, err := c.compare(ctx)
		if err != nil {
			return err
		}
		c.count(started, ScrubPass{Missing: missing})
	}
	for ; folder < shardFolders; folder++ {
		c.limiter.SetLimit(c.pace(fast))
		if err := c.folder(ctx, started, byte(folder)); err != nil {
			return err
		}
		if err := c.change(started, func(p *scrubProgress) { p.Folder = folder + 1 }); err != nil {
			return err
		}
		if err := c.save(); err != nil {
			return err
		}
	}
	var last ScrubPass
	err := c.change(started, func(p *scrubProgress) {
		p.Current.Ended = c.now()
		p.Last, last = p.Current, p.Current
	})
	if err != nil {
		return err
	}
	event := c.log.Info()
	if last.Damaged+last.Missing > 0 {
		event = c.log.Warn()
	}
	event.Uint64("shards", last.Shards).Uint64("bytes", last.Bytes).Uint64("damaged", last.Damaged).Uint64("missing", last.Missing).
		Dur("took", last.Ended.Sub(last.Started)).Msg("scrub has read all shards")
	return c.save()
}

// change changes the progress of the pass that was started then. It fails with
// errWanted when another one has begun.
func (c *scrub) change(started time.Time, edit func(*scrubProgress)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.progress.Current.Started.Equal(started) {
		return errWanted
	}
	edit(&c.progress)
	return nil
}

// count adds to what the pass has done.
func (c *scrub) count(started time.Time, more ScrubPass) {
	_ = c.change(started, func(p *scrubProgress) { // Who looks next learns that it is over.
		pass := &p.Current
		pass.Shards, pass.Bytes = pass.Shards+more.Shards, pass.Bytes+more.Bytes
		pass.Damaged, pass.Missing = pass.Damaged+more.Damaged, pass.Missing+more.Missing
	})
}

// pace is how fast to read, so that a pass takes the period.
func (c *scrub) pace(fast bool) rate.Limit {
	if fast || c.period == 0 {
		return rate.Limit(c.maxRate)
	}
	usage, err := c.store.catalog.ShardUsage()
	if err != nil {
		return minScrubBytesPerSecond
	}
	costs := float64(usage[c.node].GetBytes()) + scrubFileBytes*float64(usage[c.node].GetShards())
	wanted := costs / c.period.Seconds()
	return rate.Limit(min(max(wanted, minScrubBytesPerSecond), float64(c.maxRate)))
}

// interrupted looks whether somebody wants something else meanwhile.
func (c *scrub) interrupted(ctx context.Context, started time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.look:
		c.compareNow(ctx)
	default:
	}
	return c.change(started, func(*scrubProgress) {})
}

// compareNow is compare whose errors are logged.
func (c *scrub) compareNow(ctx context.Context) {
	missing, err := c.compare(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		c.log.Warn().Err(err).Msg("could not compare the shards that are here with the records, trying again")
		time.AfterFunc(scrubPause, c.store.CompareShards)
	case missing > 0:
		c.log.Warn().Uint64("shards", missing).Msg("shards are missing on this node, and will be rebuilt")
	}
}

// compare reports shards that the records say are on this node and that are not,
// and returns how many. Shards are durable before they are on record, so missing
// means lost, or moved away since the record was read, which the report finds out.
func (c *scrub) compare(ctx context.Context) (missing uint64, err error) {
	if err := c.store.catalog.CatchUp(ctx); err != nil {
		return 0, fmt.Errorf("catch up with the records: %w", err)
	}
	for after := []byte(nil); ; {
		extents, err := c.store.catalog.ExtentsOn(c.node, after, scanPage)
		if err != nil {
			return missing, fmt.Errorf("list extents: %w", err)
		}
		var lost []*proto.ShardRef
		for _, extent := range extents {
			after = extent.GetId()
			number := uint32(slices.Index(extent.GetHolders(), c.node))
			if !c.disks.Has(after, number) && !slices.Contains(extent.GetDamagedShards(), number) {
				lost = append(lost, &proto.ShardRef{ExtentId: after, ShardNumber: number, NodeId: c.node})
			}
		}
		if len(lost) > 0 {
			if err := c.store.catalog.ReportShards(ctx, lost); err != nil {
				return missing, fmt.Errorf("report missing shards: %w", err)
			}
		}
		missing += uint64(len(lost))
		if len(extents) < scanPage {
			return missing, nil
		}
	}
}

// load reads the progress that save has written. Without one a pass begins.
func (c *scrub) load() error {
	content, err := os.ReadFile(filepath.Join(c.disks.all[0].dir, scrubFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(content, &c.progress)
	}
	if err == nil && (c.progress.Folder < 0 || c.progress.Folder > shardFolders) {
		err = fmt.Errorf("there is no folder %d", c.progress.Folder)
	}
	return err
}

// save keeps the progress for the next process. It is not synced: after a power
// failure a little is read again.
func (c *scrub) save() error {
	c.mu.Lock()
	content, err := json.Marshal(&c.progress)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	path := filepath.Join(c.disks.all[0].dir, scrubFile)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return fmt.Errorf("save progress of the scrub: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("save progress of the scrub: %w", err)
	}
	return nil
}
