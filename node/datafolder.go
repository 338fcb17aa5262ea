package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Names inside a data folder.
const (
	lockFile     = "lock"
	identityFile = "node.json"
	raftDir      = "raft"
	stateDir     = "state"
	shardsDir    = "shards"
	cacheDir     = "cache"
)

// identityFormat is the version of node.json.
const identityFormat = 1

// identity is what node.json says: whose data this folder holds. The id is made
// once, in an empty folder, so that a node whose disk was lost comes back as
// another one: a voter without its log must never vote again.
type identity struct {
	Format int `json:"format"`
	// ID is a UUID.
	ID   string `json:"id"`
	Name string `json:"name"`
	// ClusterID is empty until the node belongs to a cluster.
	ClusterID string `json:"cluster_id,omitempty"`
	// Recovering is there from the beginning of a recovery to its end. Meanwhile log and
	// state may not go together, and nothing but a recovery may touch them.
	Recovering *recovering `json:"recovering,omitempty"`
	// Rejoining says that log and state were given up for those of a recovered cluster,
	// and have not come yet. Only then may a member's log be empty.
	Rejoining bool `json:"rejoining,omitempty"`
}

// recovering is a recovery that has begun.
type recovering struct {
	// ClusterID is the id that the cluster gets, or has got on another node.
	ClusterID string `json:"cluster_id"`
	// Rejoin tells a node's way into a recovered cluster from the recovery itself.
	Rejoin bool `json:"rejoin,omitempty"`
}

// dataFolder is a data folder locked by this process.
type dataFolder struct {
	path     string
	lock     *os.File
	identity identity
}

// openDataFolder makes the folder when absent, locks it, and checks that it is
// this node's.
func openDataFolder(path, name string) (*dataFolder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	lock, err := lockFolder(path)
	if err != nil {
		return nil, err
	}
	folder := &dataFolder{path: path, lock: lock}
	if err := folder.identify(name); err != nil {
		lock.Close()
		return nil, err
	}
	return folder, nil
}

func lockFolder(path string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data folder %s is in use by another atoll process: stop that one, or give this node a folder of its own", path)
		}
		return nil, fmt.Errorf("lock data folder %s: %w", path, err)
	}
	return lock, nil
}

func (f *dataFolder) identify(name string) error {
	file := filepath.Join(f.path, identityFile)
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return f.create(name)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if err := json.Unmarshal(content, &f.identity); err != nil {
		return fmt.Errorf("read %s: it is damaged: %w", file, err)
	}
	id := f.identity
	if id.Format != identityFormat {
		return fmt.Errorf("data folder %s has format %d, this atoll knows format %d: use the version that wrote it", f.path, id.Format, identityFormat)
	}
	if uuid.Validate(id.ID) != nil {
		return fmt.Errorf("read %s: it is damaged: id %q is not a UUID", file, id.ID)
	}
	if id.Name != name {
		return fmt.Errorf("data folder %s belongs to node %q, not to %q: give this node its own folder, or start it under that name", f.path, id.Name, name)
	}
	return nil
}

// create gives an empty folder an identity. A folder that has data but no
// identity is damaged, and a new identity would hide that.
func (f *dataFolder) create(name string) error {
	for _, dir := range []string{raftDir, stateDir, shardsDir} {
		entries, err := os.ReadDir(filepath.Join(f.path, dir))
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("data folder %s has data but no %s: restore that file, or start on an empty folder as a new node", f.path, identityFile)
		}
	}
	return f.write(identity{Format: identityFormat, ID: uuid.NewString(), Name: name})
}

// setCluster records which cluster the folder belongs to, now that log and state do.
func (f *dataFolder) setCluster(clusterID string) error {
	next := identity{Format: identityFormat, ID: f.identity.ID, Name: f.identity.Name, ClusterID: clusterID}
	if f.identity == next {
		return nil
	}
	return f.write(next)
}

// checkRecovered refuses a folder in which a recovery was cut off.
func (f *dataFolder) checkRecovered() error {
	r := f.identity.Recovering
	if r == nil {
		return nil
	}
	return fmt.Errorf("data folder %s: a recovery was cut off: run '%s' again, with the configuration of this node", f.path, r.command())
}

// command is what completes a recovery that was cut off.
func (r *recovering) command() string {
	if r.Rejoin {
		return "atoll recover --rejoin --yes"
	}
	return "atoll recover --yes"
}

func (f *dataFolder) write(id identity) error {
	content, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	if err := writeFileDurably(filepath.Join(f.path, identityFile), append(content, '\n')); err != nil {
		return err
	}
	f.identity = id
	return nil
}

func (f *dataFolder) Close() error { return f.lock.Close() }

// writeFileDurably replaces a file so that a crash leaves the old or the new
// content, never a mix: temporary name, fsync, rename, fsync of the folder.
func writeFileDurably(path string, content []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
