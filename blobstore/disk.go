package blobstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	// shardFolders is how many folders the shards are spread over, by the first
	// byte of the extent's id.
	shardFolders = 256
	// unfinishedFolder has the shards that are being written.
	unfinishedFolder = "tmp"
	// listPageShards is how many shards List hands over at once.
	listPageShards = 1000
	// diskRest is how long a disk takes no new shards after it reported an error, so
	// that writes go elsewhere instead of failing here one after the other.
	diskRest = 30 * time.Second
	// maxAutoReserveBytes bounds the reserve that is computed from the disk's size.
	maxAutoReserveBytes = 4 << 30
	// endRoomBytes is what is kept, beside the reserve, for shards that were begun
	// while there was more: a node whose disk is nearly full says that it is full, so
	// that uploads are not placed on it only to break in the middle.
	endRoomBytes = 16 << 20
)

// Disk is the folder with this node's shards. Safe for concurrent use.
type Disk struct {
	dir           string
	logger        zerolog.Logger
	capacityBytes uint64
	reserveBytes  uint64 // 0: computed from the file system's size.
	calls         fileCalls
	handles       *openShards
	recent        *recent
	// writeBehind is writeBehindBytes, and endRoom endRoomBytes; less in tests.
	writeBehind int64
	endRoom     uint64
	// names is held while a shard's name is given to a file or taken away, so that
	// what was decided on one file does not hit another.
	names sync.Mutex
	// writers has room for each shard that may be written at once.
	writers chan struct{}
	// opened is when the disk was opened, and failed how long after that it last
	// reported an error, in nanoseconds; 0 for never. The time is monotonic.
	opened time.Time
	failed atomic.Int64
	closed atomic.Bool
	// claim tells the disk from every other. It does not change once the disk is in
	// use.
	claim diskClaim
	// retirement is why the disk was taken out of service; nil if it was not.
	retirement atomic.Pointer[error]
	// probeInterval and grace are Config.DiskProbeInterval and Config.DiskGrace.
	probeInterval, grace time.Duration
}

// fileCalls are the calls on which durability and space depend, and what is found to
// be there. Tests put faults in their place.
type fileCalls struct {
	create    func(dir, pattern string) (*os.File, error)
	write     func(f *os.File, pieces [][]byte) error
	writeback func(f *os.File, offset, length int64, settle bool) error
	sync      func(f *os.File) error
	rename    func(from, to string) error
	syncDir   func(dir string) error
	remove    func(path string) error
	space     func(dir string) (free, total uint64, err error)
	openDir   func(dir string) (*os.File, error)
}

// OpenDisk opens the folder Config.Dir, makes it if need be, and drops what
// unfinished writes left. It does not look at the shards, so its cost does not
// grow with their number. It fails with ErrInvalid and ErrDisk.
func OpenDisk(cfg Config) (*Disk, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Disk{
		dir:           cfg.Dir,
		logger:        cfg.Logger,
		capacityBytes: cfg.CapacityBytes,
		reserveBytes:  cfg.ReserveBytes,
		calls: fileCalls{
			create: os.CreateTemp, write: writeVector, writeback: startWriteback, sync: (*os.File).Sync,
			rename: os.Rename, syncDir: syncDir, remove: os.Remove, space: fileSystemSpace, openDir: os.Open,
		}.watched(cfg.WatchSteps),
		handles:     newOpenShards(cfg.MaxOpenShards),
		writeBehind: writeBehindBytes,
		endRoom:     endRoomBytes,
		writers:     make(chan struct{}, cfg.MaxShardWriters),
		opened:      time.Now(),

		probeInterval: cfg.DiskProbeInterval,
		grace:         cfg.DiskGrace,
	}
	d.recent = newRecent(d.forgetPages)
	if err := d.makeFolders(); err != nil {
		return nil, fmt.Errorf("open shard folder %s: %w: %w", d.dir, ErrDisk, err)
	}
	if err := d.dropUnfinished(); err != nil {
		return nil, fmt.Errorf("open shard folder %s: %w: %w", d.dir, ErrDisk, err)
	}
	if _, _, err := d.Space(); err != nil {
		return nil, fmt.Errorf("open shard folder %s: %w", d.dir, err)
	}
	return d, nil
}

// makeFolders makes all folders that there will ever be, durably, so that no
// write of a shard has to.
func (d *Disk) makeFolders() error {
	switch err := os.Mkdir(d.dir, 0o700); {
	case err == nil:
		if err := d.calls.syncDir(filepath.Dir(d.dir)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	made := false
	for i := range shardFolders + 1 {
		name := unfinishedFolder
		if i < shardFolders {
			name = folderName(byte(i))
		}
		err := os.Mkdir(filepath.Join(d.dir, name), 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		made = made || err == nil
	}
	if !made {
		return nil
	}
	return d.calls.syncDir(d.dir)
}

// dropUnfinished empties the folder of unfinished shards. No record names any of
// them, since a shard is acknowledged only under its own name.
func (d *Disk) dropUnfinished() error {
	dir := filepath.Join(d.dir, unfinishedFolder)
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range left {
		if err := d.calls.remove(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	if len(left) > 0 {
		d.logger.Info().Int("shards", len(left)).Msg("dropped unfinished shards of the last run")
	}
	return nil
}

// Has says whether there is a file for the shard. It does not say that the file
// is sound.
func (d *Disk) Has(extentID []byte, shardNumber uint32) bool {
	id, err := newShardID(extentID, shardNumber)
	if err != nil {
		return false
	}
	return d.has(id)
}

func (d *Disk) has(id shardID) bool {
	_, err := os.Lstat(d.path(id))
	return err == nil
}

// Remove deletes a shard. It fails with ErrShardUnknown, ErrDisk and ErrInvalid.
// After a power failure the shard may be there again: the sweep then meets it a
// second time.
func (d *Disk) Remove(extentID []byte, shardNumber uint32) error {
	id, err := newShardID(extentID, shardNumber)
	if err != nil {
		return fmt.Errorf("remove shard: %w", err)
	}
	return d.remove(id)
}

func (d *Disk) remove(id shardID) error {
	d.names.Lock()
	defer d.names.Unlock()
	return d.removeNamed(id)
}

// name gives a file its place among the shards.
func (d *Disk) name(file string, id shardID) error {
	d.names.Lock()
	defer d.names.Unlock()
	return d.calls.rename(file, d.path(id))
}

// syncName makes the name of a shard durable. It fails with ErrDisk.
func (d *Disk) syncName(id shardID) error {
	if err := d.calls.syncDir(filepath.Dir(d.path(id))); err != nil {
		return fmt.Errorf("make name of shard %s durable: %w", id, d.fault(err))
	}
	return nil
}

// fileIdentity tells a shard's file from a later one of the same name.
type fileIdentity struct {
	inode    uint64
	modified int64 // Unix nanoseconds
}

// identify fails with ErrShardUnknown and ErrDisk.
func (d *Disk) identify(id shardID) (fileIdentity, error) {
	info, err := os.Lstat(d.path(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fileIdentity{}, fmt.Errorf("look at shard %s: %w", id, ErrShardUnknown)
	case err != nil:
		return fileIdentity{}, fmt.Errorf("look at shard %s: %w: %w", id, ErrDisk, err)
	}
	identity := fileIdentity{modified: info.ModTime().UnixNano()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		identity.inode = stat.Ino
	}
	return identity, nil
}

// renew gives a shard's file another identity, as if it had just been written. It
// fails with ErrShardUnknown and ErrDisk.
func (d *Disk) renew(id shardID) error {
	d.names.Lock()
	defer d.names.Unlock()
	before, err := d.identify(id)
	if err != nil {
		return err
	}
	modified := time.Unix(0, max(time.Now().UnixNano(), before.modified+1))
	if err := os.Chtimes(d.path(id), time.Time{}, modified); err != nil {
		return fmt.Errorf("renew shard %s: %w: %w", id, ErrDisk, err)
	}
	return nil
}

// removeFile deletes a shard if it still is this file. It fails with
// ErrShardUnknown, also if another file has taken its place, and with ErrDisk.
func (d *Disk) removeFile(id shardID, file fileIdentity) error {
	d.names.Lock()
	defer d.names.Unlock()
	found, err := d.identify(id)
	if err != nil {
		return err
	}
	if found != file {
		return fmt.Errorf("remove shard %s: it was written anew: %w", id, ErrShardUnknown)
	}
	return d.removeNamed(id)
}

// removeNamed is remove; names is held.
func (d *Disk) removeNamed(id shardID) error {
	err := d.calls.remove(d.path(id))
	d.handles.forget(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("remove shard %s: %w", id, ErrShardUnknown)
	case err != nil:
		return fmt.Errorf("remove shard %s: %w: %w", id, ErrDisk, err)
	}
	return nil
}

// list hands the shards of one folder over, a page at a time and in no order. A
// shard that comes or goes meanwhile may be among them or not. The page is only
// valid during the call; an error that page returns ends the list. It fails with
// ErrDisk, and with ErrBusy if the process has too many files open.
func (d *Disk) list(folder byte, page func([]shardID) error) error {
	dir, err := d.calls.openDir(filepath.Join(d.dir, folderName(folder)))
	if err != nil {
		return fmt.Errorf("list shards: %w", readFault(err))
	}
	defer dir.Close()
	ids := make([]shardID, 0, listPageShards)
	for {
		names, err := dir.Readdirnames(listPageShards)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list shards: %w", readFault(err))
		}
		ids = ids[:0]
		for _, name := range names {
			if id, ok := parseShardID(name); ok && id.extent[0] == folder {
				ids = append(ids, id)
			} else {
				d.logger.Warn().Str("file", filepath.Join(dir.Name(), name)).Msg("file in shard folder is not a shard")
			}
		}
		if err := page(ids); err != nil {
			return err
		}
	}
}

// Space returns the bytes free for new shards, the reserve and endRoomBytes taken
// off, and the bytes that the node offers in all. While the disk rests after an error, none
// are free. It fails with ErrDisk.
func (d *Disk) Space() (free, capacity uint64, err error) {
	free, total, reserve, err := d.room()
	if err != nil {
		return 0, 0, fmt.Errorf("ask for space: %w", err)
	}
	capacity = total - min(total, reserve)
	if d.capacityBytes > 0 {
		capacity = d.capacityBytes
	}
	if d.resting() {
		free = 0
	}
	return min(free-min(free, d.endRoom), capacity), capacity, nil
}

// requireSpace fails with ErrNoSpace when so many bytes more would touch the
// reserve. Writers ask before every write, since asking costs next to nothing and
// others write to the file system as well.
func (d *Disk) requireSpace(bytes int) error {
	free, _, reserve, err := d.room()
	if err != nil {
		return err
	}
	if free <= uint64(bytes) {
		return fmt.Errorf("%d bytes are free beside the reserve of %d: %w", free, reserve, ErrNoSpace)
	}
	return nil
}

// room returns the bytes of the file system: those free beside the reserve, all,
// and the reserve.
func (d *Disk) room() (free, total, reserve uint64, err error) {
	free, total, err = d.calls.space(d.dir)
	if err != nil {
		return 0, 0, 0, d.fault(err)
	}
	reserve = d.reserveBytes
	if reserve == 0 {
		reserve = min(total/20, maxAutoReserveBytes)
	}
	return free - min(free, reserve), total, reserve, nil
}

// Close closes the files kept open for reading. Reads under way end as they
// would; later calls fail with ErrClosed.
func (d *Disk) Close() error {
	d.closed.Store(true)
	d.handles.forgetAll()
	return nil
}

// fault gives an error of a write its identity, and lets the disk rest if it is
// the disk's.
func (d *Disk) fault(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	err = readFault(err)
	if errors.Is(err, ErrDisk) {
		d.rest()
	}
	return err
}

// readFault gives an error of a read its identity: ErrBusy for what the process lacks,
// which says nothing of the disk, and ErrDisk for all else.
func readFault(err error) error {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return fmt.Errorf("%w: %w", ErrDisk, err)
}

// rest has the disk take no new shards for diskRest.
func (d *Disk) rest() { d.failed.Store(max(1, int64(time.Since(d.opened)))) }

func (d *Disk) resting() bool {
	failed := time.Duration(d.failed.Load())
	return failed > 0 && time.Since(d.opened)-failed < diskRest
}

// path returns where a shard is once it is whole.
func (d *Disk) path(id shardID) string {
	return filepath.Join(d.dir, folderName(id.extent[0]), id.String())
}

func folderName(folder byte) string { return fmt.Sprintf("%02x", folder) }

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
