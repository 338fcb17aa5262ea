package nodetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

// CrashAt is where a process ends: when it reaches a step for the Nth time. With
// LosePower what it has not synced is gone as well, as when the machine loses power.
type CrashAt struct {
	Step      string
	N         int
	LosePower bool
}

func (a CrashAt) String() string {
	how := "kill -9"
	if a.LosePower {
		how = "power loss"
	}
	return fmt.Sprintf("%s at %q #%d", how, a.Step, a.N)
}

// StepCount is how often a step was reached.
type StepCount struct {
	Step  string
	Count int
}

// stepWatch sees every step of the process it is in, and ends the process at the
// one that it is told.
type stepWatch struct {
	mu       sync.Mutex // held while the process dies, so that nobody gets past a step meanwhile
	at       CrashAt
	counts   []StepCount
	unsynced unsynced
	// file is where what is not synced is left for the next process.
	file string
}

// newStepWatch goes on from what the last process has left in a file: what it had not
// synced may still be lost.
func newStepWatch(file string) (*stepWatch, error) {
	w := &stepWatch{file: file, unsynced: unsynced{Files: make(map[string]bool), Names: make(map[string]string)}}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err == nil {
		err = errors.Join(json.Unmarshal(content, &w.unsynced), os.Remove(file))
	}
	return w, err
}

func (w *stepWatch) arm(at CrashAt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = at
}

func (w *stepWatch) disarm() CrashAt {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := w.at
	w.at = CrashAt{}
	return at
}

func (w *stepWatch) trace() []StepCount {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := w.counts
	w.counts = nil
	return counts
}

func (w *stepWatch) reach(step string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached(step)
}

// reached is reach; mu is held.
func (w *stepWatch) reached(step string) {
	if i := slices.IndexFunc(w.counts, func(c StepCount) bool { return c.Step == step }); i >= 0 {
		w.counts[i].Count++
	} else {
		w.counts = append(w.counts, StepCount{step, 1})
	}
	if w.at.Step != step {
		return
	}
	if w.at.N--; w.at.N > 0 {
		return
	}
	if w.at.LosePower {
		w.unsynced.lose()
	} else if content, err := json.Marshal(w.unsynced); err != nil || os.WriteFile(w.file, content, 0o600) != nil {
		panic("can't leave word of what is not synced") // the parent sees how the process ended
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it can't fail on oneself
	select {}
}

// disk sees the steps of the blob store. What a step leaves behind is the same as
// what the next one finds, so that only the last of a row counts when it is done.
func (w *stepWatch) disk(step blobstore.Step) {
	if filepath.Base(step.Path) == "probe" {
		return // of the disk's health, now and then
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unsynced.note(step)
	name := string(step.Op)
	if step.Op == blobstore.OpRemove {
		name += " shard"
		if filepath.Base(filepath.Dir(step.Path)) == "tmp" {
			name = "remove unfinished"
		}
	}
	switch {
	case !step.Done:
		w.reached(name)
	case step.Op == blobstore.OpSyncFolder, step.Op == blobstore.OpRemove:
		w.reached(name + " done")
	}
}

// unsynced is what a power failure would take.
type unsynced struct {
	// Files have bytes that were not synced.
	Files map[string]bool
	// Names are new names in folders that were not synced since, with the old ones.
	Names map[string]string
}

func (u *unsynced) note(step blobstore.Step) {
	switch {
	case step.Op == blobstore.OpWrite && !step.Done:
		u.Files[step.Path] = true
	case step.Op == blobstore.OpSync && step.Done:
		delete(u.Files, step.Path)
	case step.Op == blobstore.OpRename && step.Done:
		u.Names[step.To] = step.Path
		if u.Files[step.Path] {
			delete(u.Files, step.Path)
			u.Files[step.To] = true
		}
	case step.Op == blobstore.OpSyncFolder && step.Done:
		for name := range u.Names {
			if filepath.Dir(name) == step.Path {
				delete(u.Names, name)
			}
		}
	case step.Op == blobstore.OpRemove:
		delete(u.Files, step.Path)
		delete(u.Names, step.Path)
	}
}

// there are the files that are there and would not survive.
func (u *unsynced) there() (files []string) {
	for _, file := range slices.Concat(slices.Collect(maps.Keys(u.Files)), slices.Collect(maps.Keys(u.Names))) {
		if _, err := os.Stat(file); err == nil {
			files = append(files, file)
		}
	}
	return files
}

// lose empties files whose bytes were not synced, and takes names back that were
// not: a file system may do either. Errors show in what is found later.
func (u *unsynced) lose() {
	for file := range u.Files {
		_ = os.Truncate(file, 0)
	}
	for name, before := range u.Names {
		if !u.Files[name] {
			_ = os.Rename(name, before)
		}
	}
}

// seams puts the watch between the parts of a node. The sweep sees garbage only
// while sweeping is true.
func (w *stepWatch) seams(sweeping *atomic.Bool) node.Seams {
	return node.Seams{
		Log:     func(log metadata.Log) metadata.Log { return watchedLog{log, w} },
		Machine: func(m consensus.StateMachine) consensus.StateMachine { return watchedMachine{m, w} },
		Catalog: func(c blobstore.Catalog) blobstore.Catalog { return watchedCatalog{c, w, sweeping} },
		Handler: func(h http.Handler) http.Handler { return watchedHandler{h, w} },
	}
}

// background are commands that nobody's request leads to, at any time.
var background = map[string]bool{
	"init_cluster": true, "put_node": true, "set_liveness": true, "checkpoint": true, "put_signing_key": true,
	"advance_era": true,
}

// commandName is what a command in the log does; empty if it does not matter here.
func commandName(data []byte) string {
	if len(data) < crc32.Size {
		return ""
	}
	command := &atoll.Command{}
	if err := proto.Unmarshal(data[:len(data)-crc32.Size], command); err != nil {
		return ""
	}
	message := command.ProtoReflect()
	body := message.WhichOneof(message.Descriptor().Oneofs().ByName("body"))
	if body == nil || background[string(body.Name())] {
		return ""
	}
	return string(body.Name())
}

type watchedLog struct {
	metadata.Log
	watch *stepWatch
}

func (l watchedLog) Propose(ctx context.Context, command []byte) ([]byte, uint64, error) {
	name := commandName(command)
	if name != "" {
		l.watch.reach("propose " + name)
	}
	result, index, err := l.Log.Propose(ctx, command)
	if name != "" && err == nil {
		l.watch.reach("propose " + name + " done")
	}
	return result, index, err
}

type watchedMachine struct {
	consensus.StateMachine
	watch *stepWatch
}

func (m watchedMachine) Apply(entries []consensus.Entry) ([][]byte, error) {
	var names []string
	for _, entry := range entries {
		if name := commandName(entry.Data); name != "" {
			names = append(names, name)
		}
	}
	for _, name := range names {
		m.watch.reach("apply " + name)
	}
	results, err := m.StateMachine.Apply(entries)
	if err == nil {
		for _, name := range names {
			m.watch.reach("apply " + name + " done")
		}
	}
	return results, err
}

type watchedCatalog struct {
	blobstore.Catalog
	watch    *stepWatch
	sweeping *atomic.Bool
}

// LiveShards is what the sweep asks.
func (c watchedCatalog) LiveShards(ctx context.Context, shards []*atoll.ShardRef) ([]bool, uint64, error) {
	if !c.sweeping.Load() {
		return slices.Repeat([]bool{true}, len(shards)), 0, nil
	}
	live, era, err := c.Catalog.LiveShards(ctx, shards)
	if slices.Contains(live, false) {
		c.watch.reach("see garbage")
	}
	return live, era, err
}

type watchedHandler struct {
	http.Handler
	watch *stepWatch
}

// ServeHTTP counts the answers to requests that change something, once they are on
// their way.
func (h watchedHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.Handler.ServeHTTP(w, r)
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return
	}
	_ = http.NewResponseController(w).Flush() // an answer that can't be sent is no step less
	kind := "manifest"
	if strings.Contains(r.URL.Path, "/blobs/") {
		kind = "blob"
	}
	h.watch.reach("answer " + r.Method + " " + kind)
}
