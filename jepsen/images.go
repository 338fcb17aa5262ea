package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// imagesPattern is how folders with the images of disks are named, imagesLock the file in them that
// is locked as long as their run lasts.
const (
	imagesPattern = "atoll-jepsen-*"
	imagesLock    = "lock"
)

// images is the folder with the images of a run's disks.
type images struct {
	dir  string // "" if there are no disks
	lock *os.File
}

// newImages makes the folder, and removes those that runs have left which were killed.
func newImages(o *options) (*images, error) {
	if o.loopback {
		return &images{}, nil
	}
	left, err := filepath.Glob(filepath.Join(o.images, imagesPattern))
	if err != nil {
		return nil, err
	}
	for _, dir := range left {
		removeLeft(dir)
	}
	d := &images{}
	if d.dir, err = os.MkdirTemp(o.images, imagesPattern); err != nil {
		return nil, err
	}
	d.lock, err = lockFile(filepath.Join(d.dir, imagesLock))
	return d, err
}

// removeLeft removes a folder whose run is over. What was kept to be looked at has no lock file.
func removeLeft(dir string) {
	if _, err := os.Stat(filepath.Join(dir, imagesLock)); err != nil {
		return
	}
	lock, err := lockFile(filepath.Join(dir, imagesLock))
	if err != nil {
		return
	}
	defer lock.Close()
	fmt.Fprintf(os.Stderr, "jepsen: removing %s, which a run has left that was killed\n", dir)
	_ = os.RemoveAll(dir)
}

// close removes the folder, or keeps it and returns where it is.
func (d *images) close(keep bool) (kept string) {
	if d.dir == "" {
		return ""
	}
	if !keep {
		_ = os.RemoveAll(d.dir)
	} else {
		kept = d.dir
		os.Remove(filepath.Join(d.dir, imagesLock))
	}
	d.lock.Close()
	return kept
}
