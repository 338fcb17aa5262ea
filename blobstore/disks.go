package blobstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/proto"
)

// disksFile, in the first folder, says which disk was in which of the others.
const disksFile = "disks.json"

// disks are the folders with this node's shards. Each is on a disk of its own,
// which may fail without the others: it is then taken out of service, and its
// shards count as lost. No extent has two shards on one node, so that a disk takes
// no more than one shard of any extent along. Safe for concurrent use.
type disks struct {
	// all are the folders that could be opened, in the order of the configuration.
	all []*Disk
	// missing are those that could not.
	missing []DiskStatus
	logger  zerolog.Logger
}

// DiskStatus is one of the node's folders for shards.
type DiskStatus struct {
	Dir string
	// FreeBytes is the room for new shards, CapacityBytes what the disk offers in all.
	FreeBytes, CapacityBytes uint64
	// Fault is why the disk is out of service; empty if it is not.
	Fault string
}

// openDisks opens Config.Dir and Config.MoreDirs for a node. Without the first
// there is nothing, others that can't be opened are out of service: the node is
// better off with the rest. It fails with ErrInvalid and ErrDisk.
func openDisks(cfg Config, node string) (*disks, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	more := cfg.MoreDirs
	folders := 1 + len(more)
	cfg.MoreDirs = nil
	cfg.CapacityBytes /= uint64(folders)
	cfg.MaxOpenShards = max(1, cfg.MaxOpenShards/folders)
	first, err := openClaimed(cfg, node, "")
	if err != nil {
		return nil, err
	}
	s := &disks{all: []*Disk{first}, logger: cfg.Logger}
	if len(more) == 0 {
		return s, nil
	}
	known, err := loadKnownDisks(first.dir)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	for _, dir := range more {
		cfg.Dir = dir
		d, err := openClaimed(cfg, node, known[dir])
		if err != nil {
			s.missing = append(s.missing, DiskStatus{Dir: dir, Fault: err.Error()})
			s.logger.Error().Err(err).Str("folder", dir).Msg("disk is out of service, its shards count as lost")
			continue
		}
		s.all = append(s.all, d)
		known[dir] = d.claim.ID
	}
	if err := saveKnownDisks(first.dir, known); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// openClaimed opens a folder that belongs to the node, or to none yet. A disk that
// was there before and is not now is not mounted, most likely: to write its shards
// to what is below would fill another disk, and hide them once it is mounted. So it
// is refused, unless another disk is mounted there.
func openClaimed(cfg Config, node, known string) (*Disk, error) {
	claim, err := readClaim(cfg.Dir)
	isNew := errors.Is(err, fs.ErrNotExist)
	switch {
	case isNew && known != "" && !isMountPoint(filepath.Dir(cfg.Dir)):
		return nil, fmt.Errorf("open shard folder %s: disk %s is not there any more: mount it again; if it was replaced, mount the new one there, or give it another folder: %w", cfg.Dir, known, ErrDisk)
	case isNew:
		claim = diskClaim{ID: fmt.Sprintf("%x", newExtentID()), Node: node}
	case err != nil:
		return nil, fmt.Errorf("open shard folder %s: %w: %w", cfg.Dir, ErrDisk, err)
	case claim.Node != node:
		return nil, fmt.Errorf("open shard folder %s: it belongs to node %s, this one is %s: empty it, or give this node another folder: %w", cfg.Dir, claim.Node, node, ErrDisk)
	}
	if isNew {
		if err := os.MkdirAll(filepath.Dir(cfg.Dir), 0o700); err != nil {
			return nil, fmt.Errorf("open shard folder %s: %w: %w", cfg.Dir, ErrDisk, err)
		}
	}
	d, err := OpenDisk(cfg)
	if err != nil {
		return nil, err
	}
	d.claim = claim
	if isNew {
		if err := writeJSON(filepath.Join(cfg.Dir, claimFile), claim); err != nil {
			return nil, errors.Join(fmt.Errorf("open shard folder %s: %w: %w", cfg.Dir, ErrDisk, err), d.Close())
		}
	}
	return d, nil
}

// isMountPoint says whether a folder is on another file system than the one around
// it.
func isMountPoint(dir string) bool {
	inner, err := os.Stat(dir)
	if err != nil {
		return false
	}
	outer, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		return false
	}
	in, ok := inner.Sys().(*syscall.Stat_t)
	out, okToo := outer.Sys().(*syscall.Stat_t)
	return ok && okToo && in.Dev != out.Dev
}

func loadKnownDisks(dir string) (map[string]string, error) {
	known := make(map[string]string)
	content, err := os.ReadFile(filepath.Join(dir, disksFile))
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &known)
	}
	if err != nil {
		return nil, fmt.Errorf("read which disks there were: %w: %w", ErrDisk, err)
	}
	return known, nil
}

func saveKnownDisks(dir string, known map[string]string) error {
	if err := writeJSON(filepath.Join(dir, disksFile), known); err != nil {
		return fmt.Errorf("record which disks there are: %w: %w", ErrDisk, err)
	}
	return nil
}

// writeJSON replaces a file durably.
func writeJSON(path string, value any) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(content, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// serving are the disks that are in service.
func (s *disks) serving() []*Disk {
	return slices.DeleteFunc(slices.Clone(s.all), func(d *Disk) bool { return d.retired() != nil })
}

// status tells of every folder, in no order.
func (s *disks) status() []DiskStatus {
	status := slices.Clone(s.missing)
	for _, d := range s.all {
		one := DiskStatus{Dir: d.dir}
		if err := d.retired(); err != nil {
			one.Fault = err.Error()
		} else if free, capacity, err := d.Space(); err == nil {
			one.FreeBytes, one.CapacityBytes = free, capacity
		}
		status = append(status, one)
	}
	return status
}

// space is Disk.Space of all disks in service together. One that does not even
// tell has no room.
func (s *disks) space() (free, capacity uint64) {
	for _, d := range s.serving() {
		f, c, err := d.Space()
		if err != nil {
			s.logger.Error().Err(err).Str("folder", d.dir).Msg("disk does not tell its space")
			continue
		}
		free, capacity = free+f, capacity+c
	}
	return free, capacity
}

// create begins a new shard, on the disk that has it already, or else by rendezvous
// hashing over the room that the disks have, so that they fill evenly; the next one
// is tried if that one can't. It fails as Disk.Create does.
func (s *disks) create(header *proto.ShardHeader) (*ShardWriter, error) {
	h, err := newShardHeader(header)
	if err != nil {
		return nil, fmt.Errorf("create shard: %w", err)
	}
	refused := fmt.Errorf("create shard %s: all disks of this node are out of service: %w", h.id, ErrDisk)
	for _, d := range s.ranked(h.id) {
		w, err := d.Create(header)
		if err == nil {
			w.named = func() { s.dropOthers(h.id, d) }
			return w, nil
		}
		if refused = err; !errors.Is(err, ErrNoSpace) && !errors.Is(err, ErrDisk) {
			break
		}
	}
	return nil, refused
}

// ranked are the disks in service, the best for a new shard first.
func (s *disks) ranked(id shardID) []*Disk {
	serving := s.serving()
	if len(serving) < 2 {
		return serving
	}
	scores := make(map[*Disk]float64, len(serving))
	for _, d := range serving {
		free, _, err := d.Space()
		switch {
		case d.has(id):
			scores[d] = math.Inf(1)
		case err == nil && free > 0:
			scores[d] = rendezvous(NodeInfo{ID: d.claim.ID, CapacityBytes: free}, string(id.extent[:]))
		}
	}
	slices.SortStableFunc(serving, func(a, b *Disk) int {
		switch {
		case scores[a] > scores[b]:
			return -1
		case scores[a] < scores[b]:
			return 1
		}
		return 0
	})
	return serving
}

// renew is Disk.renew on the disk that has the shard.
func (s *disks) renew(id shardID) error {
	for _, d := range s.serving() {
		if d.has(id) {
			return d.renew(id)
		}
	}
	return fmt.Errorf("renew shard %s: %w", id, ErrShardUnknown)
}

// dropOthers removes what other disks have of a shard that was just written: it was
// rotten, or there would have been no reason to write it.
func (s *disks) dropOthers(id shardID, written *Disk) {
	for _, d := range s.serving() {
		if d == written || !d.has(id) {
			continue
		}
		if err := d.remove(id); err != nil && !errors.Is(err, ErrShardUnknown) {
			s.logger.Warn().Err(err).Msg("could not remove the old file of a shard, the sweep will")
		}
	}
}

// hasBefore says whether a disk that is asked before d has the shard, too, so that
// nobody reads the file on d.
func (s *disks) hasBefore(d *Disk, id shardID) bool {
	for _, other := range s.serving() {
		if other == d {
			return false
		}
		if other.has(id) {
			return true
		}
	}
	return false
}

// othersHave says whether another disk in service than d has the shard.
func (s *disks) othersHave(d *Disk, id shardID) bool {
	return slices.ContainsFunc(s.serving(), func(other *Disk) bool { return other != d && other.has(id) })
}

// Has says whether there is a file for the shard on a disk in service. It does not
// say that the file is sound.
func (s *disks) Has(extentID []byte, shardNumber uint32) bool {
	return slices.ContainsFunc(s.serving(), func(d *Disk) bool { return d.Has(extentID, shardNumber) })
}

// syncName makes the name of a shard durable on the disks that have it. A process
// that died between the last two steps of Commit leaves a whole shard whose name
// may still be lost. It fails with ErrDisk and ErrInvalid.
func (s *disks) syncName(extentID []byte, shardNumber uint32) error {
	id, err := newShardID(extentID, shardNumber)
	if err != nil {
		return fmt.Errorf("make name of shard durable: %w", err)
	}
	for _, d := range s.serving() {
		if !d.has(id) {
			continue
		}
		if err := d.syncName(id); err != nil {
			return err
		}
	}
	return nil
}

// forget closes what is kept open of a shard, so that the next read opens what is
// there now.
func (s *disks) forget(id shardID) {
	for _, d := range s.all {
		d.handles.forget(id)
	}
}

// acquire opens a shard on a disk in service; or, for those who want it at any
// price, on one that is not: what can still be read there may be the last of it. It
// fails as Disk.acquire does.
func (s *disks) acquire(id shardID, anyPrice bool) (*Disk, *openShard, error) {
	candidates := s.serving()
	if anyPrice && len(candidates) < len(s.all) {
		candidates = append(candidates, slices.DeleteFunc(slices.Clone(s.all), func(d *Disk) bool { return d.retired() == nil })...)
	}
	refused := error(ErrShardUnknown)
	for _, d := range candidates {
		shard, err := d.acquire(id)
		if err == nil {
			return d, shard, nil
		}
		if !errors.Is(err, ErrShardUnknown) {
			refused = err
		}
	}
	return nil, nil, refused
}

// ReadCells is Disk.ReadCells on the disk that has the shard.
func (s *disks) ReadCells(request *proto.ReadShardRequest, buf []byte) (checksums []uint32, data []byte, err error) {
	return s.readCells(request, intoBuffer(buf))
}

// readCells is ReadCells into memory that room provides once the size is known.
func (s *disks) readCells(request *proto.ReadShardRequest, room func(size int) ([]byte, error)) (checksums []uint32, data []byte, err error) {
	id, err := newShardID(request.GetExtentId(), request.GetShardNumber())
	if err != nil {
		return nil, nil, fmt.Errorf("read shard: %w", err)
	}
	d, shard, err := s.acquire(id, true)
	if err != nil {
		return nil, nil, fmt.Errorf("read shard %s: %w", id, err)
	}
	defer d.handles.release(shard)
	return d.readOpen(shard, request, room)
}

func (s *disks) close() error {
	var errs []error
	for _, d := range s.all {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
