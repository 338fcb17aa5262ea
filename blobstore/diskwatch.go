package blobstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// claimFile says whose disk it is.
	claimFile = "disk.json"
	// probeFile is what a probe writes.
	probeFile = "probe"
	// probeBytes is how much.
	probeBytes = 4 << 10
	// probeSteps is in how many steps an answer is waited for.
	probeSteps = 4
)

// diskClaim tells a disk from every other.
type diskClaim struct {
	// ID is made once, for an empty folder.
	ID string `json:"id"`
	// Node is the id of the node whose shards these are.
	Node string `json:"node"`
}

func readClaim(dir string) (claim diskClaim, err error) {
	content, err := os.ReadFile(filepath.Join(dir, claimFile))
	if err != nil {
		return diskClaim{}, err
	}
	if err := json.Unmarshal(content, &claim); err != nil {
		return diskClaim{}, fmt.Errorf("%s is damaged: %w", claimFile, err)
	}
	return claim, nil
}

// retired returns why the disk is out of service; nil if it is not.
func (d *Disk) retired() error {
	if fault := d.retirement.Load(); fault != nil {
		return *fault
	}
	return nil
}

// watch probes the disk until ctx ends. While probes fail the disk takes no shards;
// if they have for Config.DiskGrace, it is taken out of service and watch returns
// true. It comes back with the next start of the process, when somebody has looked
// at it: a disk that comes and goes would be rebuilt again and again.
func (d *Disk) watch(ctx context.Context) (lost bool) {
	var failing time.Time
	ticker := time.NewTicker(d.probeInterval)
	defer ticker.Stop()
	for {
		began := time.Now()
		err := d.probeFor(ctx, d.grace)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			failing = time.Time{}
		case failing.IsZero():
			failing = began
			d.logger.Warn().Err(err).Str("folder", d.dir).Msg("disk fails, it takes no shards")
		}
		if err != nil {
			d.rest()
			if time.Since(failing) >= d.grace {
				d.retire(err)
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

func (d *Disk) retire(fault error) {
	d.logger.Error().Err(fault).Str("folder", d.dir).Msg("disk is out of service, its shards count as lost")
	d.retirement.Store(&fault)
}

// probeFor is probe on a goroutine of its own, which a disk that hangs keeps. The time that it
// has passes in steps: if the process is stopped, or its machine sleeps, only one of them is gone, and
// the disk is not blamed.
func (d *Disk) probeFor(ctx context.Context, limit time.Duration) error {
	probed := make(chan error, 1)
	go func() { probed <- d.probe() }()
	ticker := time.NewTicker(limit / probeSteps)
	defer ticker.Stop()
	for range probeSteps {
		select {
		case err := <-probed:
			return err
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("%w: it has not answered for %s", ErrDisk, limit)
}

// probe fails with ErrDisk when the disk is not there, or does not keep what is
// written. One that is full is well.
func (d *Disk) probe() error {
	claim, err := readClaim(d.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	if claim != d.claim {
		return fmt.Errorf("%w: disk %s is in the place of %s", ErrDisk, claim.ID, d.claim.ID)
	}
	err = d.writeProbe()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	return nil
}

// writeProbe writes random bytes and reads them back from the disk.
func (d *Disk) writeProbe() (err error) {
	file, err := os.OpenFile(filepath.Join(d.dir, probeFile), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	written, read := make([]byte, probeBytes), make([]byte, probeBytes)
	_, _ = rand.Read(written) // Never fails: see crypto/rand.
	if err := d.calls.write(file, [][]byte{written}); err != nil {
		return err
	}
	if err := d.calls.sync(file); err != nil {
		return err
	}
	dropFromCache(file, 0, 0)
	if err := readFull(file, read, 0); err != nil {
		return err
	}
	if !bytes.Equal(written, read) {
		return errors.New("it does not give back what was written")
	}
	return nil
}
