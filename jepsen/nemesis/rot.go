package nemesis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

const (
	// rotBits is how many bits at most rot in pages in use, strewnBits how many anywhere besides.
	rotBits    = 12
	strewnBits = 200
)

// rot flips bits of a bbolt file: some in pages that are in use, and sometimes many more anywhere.
// It says what it did.
func (f *Field) rot(path string) (words string, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	pages, err := pagesInUse(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	bits, at := 1+f.Rand.IntN(rotBits), make(map[int64]bool)
	var offsets []int64
	for range bits {
		page := pages[f.Rand.IntN(len(pages))]
		at[page.at] = true
		offset := page.at + f.Rand.Int64N(page.size)
		offsets = append(offsets, offset)
		if err := f.flipAt(file, offset); err != nil {
			return "", err
		}
	}
	f.Log("bits flipped in %s at %d", path, offsets)
	words = fmt.Sprintf("%d bits flipped in %d of %d pages in use of %s", bits, len(at), len(pages), filepath.Base(path))
	if f.Rand.IntN(2) == 0 {
		words += fmt.Sprintf(", %d anywhere", strewnBits)
		err = f.flip(path, strewnBits)
	}
	return words, err
}

// flip changes single bits of a file, anywhere.
func (f *Field) flip(path string, bits int) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	for range bits {
		if err := f.flipAt(file, f.Rand.Int64N(info.Size())); err != nil {
			return err
		}
	}
	return nil
}

func (f *Field) flipAt(file *os.File, at int64) error {
	one := make([]byte, 1)
	if _, err := file.ReadAt(one, at); err != nil {
		return err
	}
	one[0] ^= 1 << f.Rand.IntN(8)
	_, err := file.WriteAt(one, at)
	return err
}

// cut takes the end of a file off.
func (f *Field) cut(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() == 0 {
		return err
	}
	return os.Truncate(path, f.Rand.Int64N(info.Size()))
}

// cutTree takes the end of a bbolt file off, with pages that are in use.
func (f *Field) cutTree(path string) (words string, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	pages, err := pagesInUse(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	var end int64
	for _, page := range pages {
		end = max(end, page.at+page.size)
	}
	left := f.Rand.Int64N(end)
	return fmt.Sprintf("%s cut off after %d of %d bytes", filepath.Base(path), left, end), file.Truncate(left)
}

// damage counts shards by what was done to them.
type damage struct{ flipped, cut, removed, swapped int }

func (d damage) count() int { return d.flipped + d.cut + d.removed + d.swapped }

func (d damage) String() string {
	return fmt.Sprintf("%d shards flipped, %d cut, %d removed, %d swapped", d.flipped, d.cut, d.removed, d.swapped)
}

// rotShards damages some of a node's shards. Files are some that it has had.
func (f *Field) rotShards(n *cluster.Node, files []string) (damage, error) {
	var done damage
	f.Rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for i, file := range files[:min(len(files), rotShards)] {
		var err error
		var kind *int
		changed := 1
		switch f.Rand.IntN(5) {
		case 0:
			kind, err = &done.cut, f.cut(file)
		case 1:
			kind, err = &done.removed, os.Remove(file)
		case 2:
			folder := folderOf(n.Folders, file)
			kind, changed, err = &done.swapped, 2, swap(file, another(files, i, folder), folder+".aside")
		default:
			kind, err = &done.flipped, f.flip(file, 1+f.Rand.IntN(3))
		}
		switch {
		case err == nil:
			*kind += changed
		case !errors.Is(err, os.ErrNotExist): // it may have been swept, or have moved, meanwhile
			return done, err
		}
	}
	return done, nil
}

// folderOf returns the one of some folders that a file is in. Each is a file system of its own.
func folderOf(folders []string, file string) string {
	for _, folder := range folders {
		if strings.HasPrefix(file, folder+string(filepath.Separator)) {
			return folder
		}
	}
	return filepath.Dir(file)
}

// another returns the next file after one that is in the same folder, or the file itself.
func another(files []string, i int, folder string) string {
	for k := range files {
		next := files[(i+1+k)%len(files)]
		if strings.HasPrefix(next, folder+string(filepath.Separator)) {
			return next
		}
	}
	return files[i]
}

// swap has two files change places, of which one is put aside meanwhile, all on one file system. If it
// can't, all are where they were.
func swap(a, b, aside string) error {
	if a == b {
		return fmt.Errorf("swap %s with itself: %w", a, os.ErrNotExist)
	}
	if err := os.Rename(a, aside); err != nil {
		return err
	}
	if err := os.Rename(b, a); err != nil {
		return errors.Join(err, os.Rename(aside, a))
	}
	if err := os.Rename(aside, b); err != nil {
		return errors.Join(err, os.Rename(a, b), os.Rename(aside, a))
	}
	return nil
}
