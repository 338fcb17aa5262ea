package blobstore

import "os"

// Op is an operation that changes what is on the disk.
type Op string

// The operations of which writes and removals of shards are made.
const (
	OpCreate     Op = "create"
	OpWrite      Op = "write"
	OpSync       Op = "sync"
	OpRename     Op = "rename"
	OpSyncFolder Op = "sync folder"
	OpRemove     Op = "remove"
)

// Step is the moment just before an operation, or just after it has succeeded. A
// crash at one step leaves something else on the disk than a crash at the next.
type Step struct {
	Op Op
	// Path is the file or folder; before OpCreate it is the folder that the file is to be in.
	Path string
	// To is the new name in OpRename.
	To string
	// Done says that the operation is behind.
	Done bool
}

// watched returns calls that tell watch of each step. Without a watch they are
// the calls themselves, so that nobody pays for what only tests want.
func (c fileCalls) watched(watch func(Step)) fileCalls {
	if watch == nil {
		return c
	}
	around := func(step Step, do func() error) error {
		watch(step)
		err := do()
		if err == nil {
			step.Done = true
			watch(step)
		}
		return err
	}
	watched := c
	watched.create = func(dir, pattern string) (*os.File, error) {
		watch(Step{Op: OpCreate, Path: dir})
		f, err := c.create(dir, pattern)
		if err == nil {
			watch(Step{Op: OpCreate, Path: f.Name(), Done: true})
		}
		return f, err
	}
	watched.write = func(f *os.File, pieces [][]byte) error {
		return around(Step{Op: OpWrite, Path: f.Name()}, func() error { return c.write(f, pieces) })
	}
	watched.sync = func(f *os.File) error {
		return around(Step{Op: OpSync, Path: f.Name()}, func() error { return c.sync(f) })
	}
	watched.rename = func(from, to string) error {
		return around(Step{Op: OpRename, Path: from, To: to}, func() error { return c.rename(from, to) })
	}
	watched.syncDir = func(dir string) error {
		return around(Step{Op: OpSyncFolder, Path: dir}, func() error { return c.syncDir(dir) })
	}
	watched.remove = func(path string) error {
		return around(Step{Op: OpRemove, Path: path}, func() error { return c.remove(path) })
	}
	return watched
}
