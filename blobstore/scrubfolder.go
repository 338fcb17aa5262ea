package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// folder reads the shards of one folder.
func (c *scrub) folder(ctx context.Context, started time.Time, folder byte) error {
	for _, d := range c.disks.serving() {
		if err := c.folderOn(ctx, d, started, folder); err != nil {
			return err
		}
	}
	return nil
}

// folderOn is folder on one disk. If the disk can't tell what is in the folder, the
// records say what should be; that the process has too many files open is no such
// case, and fails with ErrBusy.
func (c *scrub) folderOn(ctx context.Context, d *Disk, started time.Time, folder byte) error {
	err := d.list(folder, func(ids []shardID) error {
		for _, id := range ids {
			if err := c.shard(ctx, d, started, id); err != nil && !errors.Is(err, ErrShardUnknown) { // swept meanwhile
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrDisk) || d.retired() != nil {
		return err
	}
	c.log.Warn().Err(err).Msg("scrub could not list a folder, looking for each shard that should be there")
	return c.recorded(ctx, d, started, folder)
}

// recorded reads the shards that the records say are in a folder that can't be
// listed. What other disks have of them is read there.
func (c *scrub) recorded(ctx context.Context, d *Disk, started time.Time, folder byte) error {
	var after []byte
	if folder > 0 { // The last id that can be in the folder before.
		after = append([]byte{folder - 1}, bytes.Repeat([]byte{0xff}, ExtentIDBytes-1)...)
	}
	for {
		extents, err := c.store.catalog.ExtentsOn(c.node, after, scanPage)
		if err != nil {
			return fmt.Errorf("list extents: %w", err)
		}
		for _, extent := range extents {
			after = extent.GetId()
			number := uint32(slices.Index(extent.GetHolders(), c.node))
			id, err := newShardID(after, number)
			if err != nil {
				return err
			}
			if id.extent[0] != folder {
				return nil
			}
			if slices.Contains(extent.GetDamagedShards(), number) || c.disks.othersHave(d, id) {
				continue
			}
			err = c.shard(ctx, d, started, id)
			if errors.Is(err, ErrShardUnknown) {
				c.count(started, ScrubPass{Missing: 1})
				c.store.reports.add(after, int(number), c.node)
			} else if err != nil {
				return err
			}
		}
		if len(extents) < scanPage {
			return nil
		}
	}
}

// shard reads one shard, and reports it if it is damaged. It fails with
// ErrShardUnknown, and when the pass is to end.
func (c *scrub) shard(ctx context.Context, d *Disk, started time.Time, id shardID) error {
	if err := c.interrupted(ctx, started); err != nil {
		return err
	}
	paid := scrubFileBytes
	if err := c.limiter.WaitN(ctx, paid); err != nil {
		return err
	}
	size, err := d.verify(id, func(bytes int) error {
		free := min(paid, bytes)
		paid -= free
		return c.limiter.WaitN(ctx, bytes-free)
	})
	c.read.Add(uint64(size))
	switch {
	case err == nil:
		c.count(started, ScrubPass{Shards: 1, Bytes: uint64(size)})
	case errors.Is(err, ErrShardUnknown):
		return err
	case errors.Is(err, ErrChecksum), errors.Is(err, ErrDisk):
		c.count(started, ScrubPass{Shards: 1, Bytes: uint64(size), Damaged: 1})
		c.log.Warn().Err(err).Msg("scrub found a damaged shard")
		d.handles.forget(id)
		c.store.reports.add(id.extent[:], int(id.number), c.node)
	case ctx.Err() != nil:
		return ctx.Err()
	default: // Too many files are open. It is read in the next pass.
	}
	return nil
}

// verify reads a shard from end to end, past the files kept open, and returns how
// many bytes it has read. wait is asked before each read. It fails with
// ErrShardUnknown, ErrChecksum, ErrDisk or ErrBusy, or as wait does.
func (d *Disk) verify(id shardID, wait func(bytes int) error) (size int64, err error) {
	shard, err := openShardFile(d.path(id), id)
	if err != nil {
		return 0, fmt.Errorf("verify shard %s: %w", id, err)
	}
	defer shard.file.Close()
	if !d.handles.wants(id) {
		defer dropFromCache(shard.file, 0, 0)
	}
	l := shard.layout
	run := shardRun{extentID: id.extent[:], layout: l, number: int(id.number), cells: min(l.runCells(), l.stripes())}
	buf := make([]byte, run.bytes())
	for ; run.first < l.stripes(); run.first += run.cells {
		run.cells = min(run.cells, l.stripes()-run.first)
		cells := buf[:run.bytes()]
		if err := wait(len(cells)); err != nil {
			return size, err
		}
		err := readFull(shard.file, cells, l.cellOffset(run.first))
		if err == nil {
			err = run.verify(shard.checksums[run.first:run.first+run.cells], cells)
		}
		if err != nil {
			return size, fmt.Errorf("verify shard %s: %w", id, err)
		}
		size += int64(len(cells))
	}
	return size, nil
}
