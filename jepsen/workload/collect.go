package workload

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

const (
	collectClients = 5
	// collectPause is between two steps of a client.
	collectPause = time.Second
	// collectLayers is how many layers all images are made of, and collectConfigs how many configs:
	// so many that some rest for longer than the grace and are collected, and so few that they
	// come back soon.
	collectLayers  = 12
	collectConfigs = 4
	// collectLive is how many images there are at a time, about. It must be so few that most
	// layers are in none.
	collectLive = 4
	// collectEpoch is after how long other images are made, collectImages how many there are in
	// each repository meanwhile: a manifest's history must not get too long for the checker. Images of one
	// epoch have the one half of the layers, those of the next the other: the first half rests, for longer
	// than the grace, and is asked for again.
	collectEpoch  = 20 * time.Second
	collectImages = 8
	collectTags   = 6
	// collectUnknown is after how many writes of unknown outcome an image is given up, for the
	// same reason; see maxUncertain as well.
	collectUnknown = 3
	// collectLong is how long a run must be, at least, to have something collected: four times the grace.
	collectLong = 60 * time.Second
	// collectMinimum is how many operations must be acknowledged in a second.
	collectMinimum = 0.5
)

// collect has images that share layers and are pushed, deleted and pushed again, while the
// cluster collects what no manifest refers to. The run must configure a grace of 15 s
// or more, a short interval, and never that untagged manifests are collected. The cluster must be
// empty before.
//
// Its operations have REPOSITORY@DIGEST of the manifest as their key: "head", "blob", "put", "delete"
// (by digest), "get" (the manifest; Output is its digest, or absent), and "blobs" (all its blobs right
// after a get; Output is what was found). "untag" deletes a tag, "tag" is a read of one that told nothing.
type collect struct {
	pause    time.Duration
	patience time.Duration
	promise  time.Duration // promiseTime, but in tests
	long     time.Duration // collectLong, but in tests
	found    *findings

	mu      sync.Mutex // guards all below
	began   time.Duration
	ended   time.Duration
	layers  []content
	configs []content
	known   map[string]image // that anybody has tried to push, by key
	live    []string         // keys of those that are there, or may be, oldest first
	doomed  []string         // keys of those deleted last
	unknown map[string]int   // writes of unknown outcome, by key
	writing map[string]int   // writes under way, by key
}

// NewCollect returns the workload of images that come and go.
func NewCollect() Workload {
	return &collect{
		pause: collectPause, patience: finalBound, promise: promiseTime, long: collectLong, found: &findings{workload: "collect"},
		known: map[string]image{}, unknown: map[string]int{}, writing: map[string]int{},
	}
}

// Name implements Workload.
func (w *collect) Name() string { return "collect" }

// MinimumOps implements Workload.
func (w *collect) MinimumOps() float64 { return collectMinimum }

// Run implements Workload.
func (w *collect) Run(ctx context.Context, env *Env) error {
	w.began = env.History.Now()
	sizes := env.Rand(w.Name()+" sizes", 0)
	for i := range collectLayers {
		w.layers = append(w.layers, newContent(env.Seed, fmt.Sprintf("pool/layer-%d", i), 4<<10+sizes.IntN(296<<10)))
	}
	for i := range collectConfigs {
		w.configs = append(w.configs, newContent(env.Seed, fmt.Sprintf("pool/config-%d", i), 300+sizes.IntN(2000)))
	}
	err := drive(ctx, env, w.Name(), collectClients, w.pause, w.step)
	w.ended = env.History.Now()
	return err
}

func (w *collect) step(ctx context.Context, s *Session) error {
	switch s.Rand.IntN(4) {
	case 0:
		w.push(ctx, s)
	case 1:
		w.remove(ctx, s)
	default:
		w.look(ctx, s)
	}
	return nil
}

func keyOf(img image) string { return img.Repository + "@" + img.Digest }

// push pushes an image, at times one that is being deleted or was just now.
func (w *collect) push(ctx context.Context, s *Session) {
	img, ok := w.choose(s)
	if !ok {
		return
	}
	key := keyOf(img)
	p := &pusher{Session: s, repository: img.Repository, pause: min(pushPause, w.pause), once: true}
	if s.Rand.IntN(2) == 0 {
		p.from = collectRepository(s.Rand.IntN(2))
		if p.from == img.Repository {
			p.from = ""
		}
	}
	reference := img.Digest
	if s.Rand.IntN(3) > 0 {
		reference = collectTag(s)
	}
	acked, unknown := p.pushImage(ctx, img, reference, key, func(content) string { return key })
	w.wrote(key, unknown, false)
	if acked && s.Rand.IntN(3) == 0 {
		w.read(ctx, s, img, img.Digest)
	}
}

func collectRepository(i int) string { return fmt.Sprintf("collect/r%d", i) }

func collectTag(s *Session) string { return fmt.Sprintf("t%d", s.Rand.IntN(collectTags)) }

// choose returns an image to push.
func (w *collect) choose(s *Session) (img image, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.doomed); n > 0 && s.Rand.IntN(3) == 0 {
		img = w.known[w.doomed[s.Rand.IntN(n)]]
	} else {
		epoch := int((s.History.Now() - w.began) / collectEpoch)
		half := w.layers[epoch%2*collectLayers/2:][:collectLayers/2]
		img = w.compose(s.Seed, fmt.Sprintf("epoch-%d-image-%d", epoch, s.Rand.IntN(collectImages)), collectRepository(s.Rand.IntN(2)), half)
	}
	key := keyOf(img)
	if !w.mayWrite(key) {
		return image{}, false
	}
	w.writing[key]++
	w.known[key] = img
	if !slices.Contains(w.live, key) {
		w.live = append(w.live, key)
	}
	return img, true
}

// compose makes up an image of some of the layers given; it depends on the arguments only.
func (w *collect) compose(seed uint64, name, repository string, pool []content) image {
	random := randOf(seed, name)
	var layers []content
	for _, i := range random.Perm(len(pool))[:1+random.IntN(3)] {
		layers = append(layers, pool[i])
	}
	return newImage(name, repository, w.configs[random.IntN(collectConfigs)], layers)
}

// mayWrite says whether one more write leaves a history that can be judged. The caller holds mu.
func (w *collect) mayWrite(key string) bool {
	return w.unknown[key] < collectUnknown && w.unknown[key]+w.writing[key] < maxUncertain
}

// wrote notes how a write of a manifest ended: how many have an unknown outcome, and whether it was deleted.
func (w *collect) wrote(key string, unknown int, deleted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unknown[key] += unknown
	w.writing[key]--
	if deleted {
		w.live = slices.DeleteFunc(w.live, func(live string) bool { return live == key })
	}
}

// remove deletes images until there are few, the oldest first, and at times one of the others, or a tag.
func (w *collect) remove(ctx context.Context, s *Session) {
	if s.Rand.IntN(5) == 0 {
		tag := collectTag(s)
		op := history.Op{Kind: "untag", Key: collectRepository(s.Rand.IntN(2)) + ":" + tag}
		path := manifestPath(op.Key[:len(op.Key)-len(tag)-1], tag)
		reply, err := s.Do(ctx, &op, http.MethodDelete, path, nil)
		op.Outcome = registry.OutcomeOfWrite(reply, err)
		s.History.Add(op)
	}
	for range 4 {
		img, ok := w.doom(s)
		if !ok {
			return
		}
		key := keyOf(img)
		op := history.Op{Kind: kindDelete, Key: key}
		reply, err := s.Do(ctx, &op, http.MethodDelete, manifestPath(img.Repository, img.Digest), nil)
		op.Outcome = registry.OutcomeOfWrite(reply, err)
		switch {
		case op.Outcome == history.OK:
			op.Output = done
		case err == nil && reply.Status == http.StatusNotFound:
			op.Outcome, op.Output = history.OK, absent
		}
		s.History.Add(op)
		if op.Outcome == history.Unknown {
			w.wrote(key, 1, false)
			return
		}
		w.wrote(key, 0, op.Outcome == history.OK)
	}
}

// doom returns an image to delete, which pushers may then push again.
func (w *collect) doom(s *Session) (img image, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := ""
	switch n := len(w.live); {
	case n > collectLive:
		key = w.live[s.Rand.IntN(n-collectLive)]
	case n > 0 && s.Rand.IntN(4) == 0:
		key = w.live[s.Rand.IntN(n)]
	case len(w.doomed) > 0 && s.Rand.IntN(8) == 0:
		key = w.doomed[s.Rand.IntN(len(w.doomed))]
	}
	if key == "" {
		return image{}, false
	}
	if !w.mayWrite(key) { // nobody touches it any more, or too many do
		if w.unknown[key] >= collectUnknown {
			w.live = slices.DeleteFunc(w.live, func(live string) bool { return live == key })
		}
		return image{}, false
	}
	w.writing[key]++
	w.doomed = append(w.doomed[max(0, len(w.doomed)-3):], key)
	return w.known[key], true
}

// look reads a manifest, and all its blobs at once if it is there.
func (w *collect) look(ctx context.Context, s *Session) {
	for range 3 {
		w.mu.Lock()
		keys := w.live
		if s.Rand.IntN(3) == 0 {
			keys = w.doomed
		}
		var img image
		if len(keys) > 0 {
			img = w.known[keys[s.Rand.IntN(len(keys))]]
		}
		w.mu.Unlock()
		switch {
		case s.Rand.IntN(4) == 0:
			w.readTag(ctx, s)
		case img.Digest != "":
			w.read(ctx, s, img, img.Digest)
		}
	}
}

// readTag reads what a tag points at.
func (w *collect) readTag(ctx context.Context, s *Session) {
	repository, tag := collectRepository(s.Rand.IntN(2)), collectTag(s)
	op := history.Op{Kind: kindGet, Input: tag}
	reply, err := s.get(ctx, &op, manifestPath(repository, tag))
	if err != nil || reply.Status != http.StatusOK { // a tag has no history here
		op.Kind, op.Key = "tag", repository+":"+tag
		if op.Outcome = history.Unknown; err == nil && reply.Status == http.StatusNotFound {
			op.Output, op.Outcome = absent, history.OK
		}
		s.History.Add(op)
		return
	}
	digest := registry.Digest(reply.Body)
	op.Key = repository + "@" + digest
	w.mu.Lock()
	img, known := w.known[op.Key]
	w.mu.Unlock()
	if !known {
		w.found.add(WrongBytes, "tag %s of %s from %s at %s: a manifest that nobody has pushed, %s, told as %s",
			tag, repository, op.Node, seconds(op.Return), digest, reply.Header.Get("Docker-Content-Digest"))
		return
	}
	if output := img.expect(tag).judge(reply); output != foundWhole {
		w.found.add(WrongBytes, "%s:%s from %s at %s: %s", repository, tag, op.Node, seconds(op.Return), output)
		return
	}
	w.note(s, &op, digest, isStale(reply))
	w.readBlobs(ctx, s, img, op.Call)
}

// read reads a manifest by digest, and its blobs if it is there. It says whether it was answered all,
// by a node with a quorum.
func (w *collect) read(ctx context.Context, s *Session, img image, digest string) bool {
	op := history.Op{Kind: kindGet, Key: keyOf(img), Input: digest}
	reply, err := s.get(ctx, &op, manifestPath(img.Repository, digest))
	output := ""
	if err == nil {
		output = img.expect(digest).judge(reply)
	}
	switch {
	case found(output, foundMissing):
		w.note(s, &op, absent, false)
		return true
	case output == foundWhole:
		w.note(s, &op, digest, isStale(reply))
		return w.readBlobs(ctx, s, img, op.Call) && !isStale(reply)
	case found(output, foundWrong):
		w.found.add(WrongBytes, "%s from %s at %s: %s", op.Key, op.Node, seconds(op.Return), output)
		return true
	}
	w.note(s, &op, "", false)
	return false
}

// note records what a get has told. What was told without a quorum was true once: it is no
// part of the order of operations.
func (w *collect) note(s *Session, op *history.Op, told string, stale bool) {
	op.Output, op.Outcome = told, outcomeOfRead(told)
	if stale {
		op.Output, op.Outcome = "stale "+told, history.Unknown
	}
	s.History.Add(*op)
}

// readBlobs reads all blobs of an image, whose manifest was seen by a get called at seen. It
// says whether it was told of all.
func (w *collect) readBlobs(ctx context.Context, s *Session, img image, seen time.Duration) bool {
	op := history.Op{Kind: kindBlobs, Key: keyOf(img), Input: fmt.Sprint(int64(seen))}
	call := s.History.Now()
	for _, blob := range img.blobs() {
		if op.Output = s.readBlob(ctx, &op, img.Repository, blob); op.Output != foundWhole {
			break
		}
	}
	op.Call, op.Outcome = call, outcomeOfRead(op.Output)
	s.History.Add(op)
	return op.Output != ""
}

// kindBlobs is reading all blobs of a manifest that was seen. Input is when the get was called, in ns.
const kindBlobs = "blobs"

// Look implements Workload. All nodes are asked for every manifest that anybody has tried to push, and for
// the blobs of those that are there.
func (w *collect) Look(ctx context.Context, env *Env) error {
	var looks []lastLook
	for _, key := range slices.Sorted(maps.Keys(w.known)) {
		for _, node := range env.Nodes() {
			img := w.known[key]
			looks = append(looks, lastLook{node: node, look: func(ctx context.Context, s *Session) bool {
				settled := w.read(ctx, s, img, img.Digest)
				answered := history.Op{Workload: w.Name(), Client: s.Client, Kind: kindFinal, Key: key, Node: node.Name, Outcome: history.OK, Output: foundWhole}
				answered.Call, answered.Return = s.History.Now(), s.History.Now()
				if !settled {
					answered.Output, answered.Outcome = "", history.Unknown
				}
				s.History.Add(answered)
				return settled
			}})
		}
	}
	return lookAtLast(ctx, env, w.Name(), w.patience, w.pause, looks)
}

// Judge implements Workload.
func (w *collect) Judge(ctx context.Context, env *Env) ([]Anomaly, error) {
	ops, faults := env.History.Ops(), env.History.Faults()
	collected := w.found.judgeCollected(ops, faults, w.ended-w.began > w.long)
	env.Log("%s: %d times a blob was gone that had been pushed before", w.Name(), collected)
	err := judgeCollect(ctx, env, w.found, ops, faults, w.promise)
	return w.found.all(), err
}
