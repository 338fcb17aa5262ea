package workload

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

const (
	// quorumlessWriters is how many clients write, each to a tag of its own.
	quorumlessWriters = 2
	// impatientReaders is how many clients each node has that ask it about tags, in all ways there are, and again when
	// they have no answer in time, beside one that reads everything and waits. A node that stood still
	// finds their questions when it goes on, of which the last are younger than what was written meanwhile. Half of
	// them wait for as long as a node asks the others in vain before it answers by what it has, and longer.
	impatientReaders = 4
	impatience       = 1500 * time.Millisecond
	morePatience     = 3 * time.Second
	// quorumlessOperations is after how many operations a tag is replaced: so many that a node that is cut off
	// knows it and misses writes, since most are reads of many clients, and so few that they can be judged.
	quorumlessOperations = 1500
	// quorumlessBlob is the size of a blob in bytes, so large that nodes have it in shards.
	quorumlessBlob = 20 << 10
	// maxPieces is how many of the pieces that were acknowledged last are read.
	maxPieces = 2000
	// lastPieces is how many of the last are read more often than others, since a node may lack
	// them, and firstPieces how many of the first: every node has answered for those.
	lastPieces  = 5
	firstPieces = 10
	// finalPieces is how many of them every node is asked for at the end.
	finalPieces = 50

	// The kinds of operations beyond those of the models. Key and Input are a digest. Output is found, or
	// foundAlone if the node said that it could not ask the others, or absent.
	kindDigest = "digest" // a manifest by digest
	kindBlob   = "layer"  // a blob by digest
	// kindMark is a PUT of a tag that is never touched again; lists tell of those. Its key and that of the lists
	// is marksKey; Input is the tag, and of a list the name that it begins behind.
	kindMark  = "mark"
	marksKey  = "_marks"
	marksName = "mark-"
	// marksShown is how many marks a list shows, about.
	marksShown = 12
	foundHere  = "found"
	foundAlone = "found without a quorum"
)

// piece is a manifest that was acknowledged, and its only layer.
type piece struct{ manifest, blob string }

// quorumless reads from every node for itself, also from those that are cut off: what is named by
// digest they may have still, tags they may not tell unless it is true.
type quorumless struct {
	common
	repository *repository
	tags       *rotation // of the writers, in their order

	mu     sync.Mutex // guards all below
	pieces []piece
	pushed int // pieces so far
	marks  int // marks so far
}

// NewQuorumless returns the workload of reads without a quorum.
func NewQuorumless() Workload {
	w := &quorumless{common: newCommon("quorumless")}
	w.repository = newRepository(w.name, w.found)
	w.repository.layered = true
	w.tags = newRotation(quorumlessWriters, func(n int) string { return fmt.Sprintf("tag-%04d", n) })
	w.tags.most = quorumlessOperations
	return w
}

// Run implements Workload.
func (w *quorumless) Run(ctx context.Context, env *Env) error {
	if err := w.repository.setUp(ctx, env); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	nodes := len(env.Nodes())
	readers := nodes * (1 + impatientReaders)
	return drive(ctx, env, w.name, readers+quorumlessWriters, w.pause, func(ctx context.Context, s *Session) error {
		// Writers go where writing is possible, so that something changes behind the back of
		// nodes that are cut off.
		s.Faithful = s.Client
		if s.Balanced = s.Client >= readers; s.Balanced {
			w.write(ctx, s, w.tags.take(s.Client-readers))
			return nil
		}
		if s.Client < nodes {
			s.History.Add(*w.read(ctx, s))
			return nil
		}
		patience := impatience
		if s.Client/nodes%2 == 0 {
			patience = morePatience
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		w.ask(ctx, s)
		return nil
	})
}

// ask asks about tags in one of the ways that there are.
func (w *quorumless) ask(ctx context.Context, s *Session) {
	tag := w.tags.take(s.Rand.IntN(quorumlessWriters)).key
	var op *history.Op
	switch n := s.Rand.IntN(100); {
	case n < 45:
		op = w.readTag(ctx, s, tag)
	case n < 65:
		op = w.readTagBy(ctx, s, http.MethodHead, tag)
	case n < 85:
		op = w.list(ctx, s, marksKey)
	default:
		op = w.probe(ctx, s, tag)
	}
	s.History.Add(*op)
}

// write pushes a blob and a manifest with it, and moves the tag there.
func (w *quorumless) write(ctx context.Context, s *Session, slot *slot) {
	blob := make([]byte, quorumlessBlob)
	for i := range blob {
		blob[i] = byte(s.Rand.Uint32())
	}
	var push history.Op // not recorded: a blob that is not acknowledged is never asked for
	if !w.repository.pushBlob(ctx, s, &push, blob) {
		return
	}
	content, digest := w.repository.manifest(note(s, slot.key), registry.Describe(registry.LayerType, blob))
	op := &history.Op{Kind: kindPut, Key: slot.key, Input: digest}
	w.repository.put(ctx, s, op, slot.key, content)
	if op.Output == codeBlobUnknown && op.Return-push.Call < promiseTime && !clockMoved(s.History.Faults(), push.Call, op.Return) {
		w.found.add(Refused, "manifest %s was refused by %s at %s for want of a layer that was acknowledged, and sent at %s: %s", digest, op.Node, seconds(op.Return), seconds(push.Call), op.Error)
	}
	w.tags.note(slot, op, "")
	s.History.Add(*op)
	if op.Outcome != history.OK {
		return
	}
	w.keep(piece{manifest: digest, blob: registry.Digest(blob)})
	if s.Rand.IntN(3) == 0 {
		mark := &history.Op{Kind: kindMark, Key: marksKey, Input: w.nextMark()}
		w.repository.put(ctx, s, mark, mark.Input, content)
		if mark.Output == codeBlobUnknown {
			w.found.add(Lost, "mark %s: a blob of a manifest that is there is missing: %s (%s, %s)", mark.Input, mark.Error, mark.Node, seconds(mark.Return))
		}
		s.History.Add(*mark)
	}
}

// nextMark returns the name of another mark. Names are in the order in which they are made.
func (w *quorumless) nextMark() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.marks++
	return fmt.Sprintf("%s%06d", marksName, w.marks)
}

// list asks for the last marks. The key is marksKey.
func (w *quorumless) list(ctx context.Context, s *Session, key string) *history.Op {
	w.mu.Lock()
	last := fmt.Sprintf("%s%06d", marksName, max(0, w.marks-marksShown))
	w.mu.Unlock()
	op := &history.Op{Kind: kindPages, Key: key, Input: last, Outcome: history.Unknown}
	reply, err := s.Do(ctx, op, http.MethodGet, tagsPath(w.name)+"?"+url.Values{"last": {last}}.Encode(), nil)
	switch {
	case err != nil:
	case reply.Status == http.StatusNotFound:
		w.found.add(Lost, "the repository, acknowledged before, is unknown: %s (%s, %s)", op.Error, op.Node, seconds(op.Return))
	case reply.Status != http.StatusOK:
		w.judgeWait(op, reply)
		w.repository.judgeRefusal(op, reply, err)
	default:
		names, err := namesOf(reply.Body)
		if err != nil || !slices.IsSorted(names) || len(names) > 0 && names[0] <= last {
			w.found.add(WrongBytes, "the list behind %s is %q (%s, %s)", last, reply.Body, op.Node, seconds(op.Return))
			break
		}
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, marksName) })
		op.Outcome, op.Output = history.OK, strings.Join(names, ",")
	}
	return op
}

// probe tries to move a tag from where it never was. The refusal tells where it is.
func (w *quorumless) probe(ctx context.Context, s *Session, tag string) *history.Op {
	content, digest := w.repository.manifest(note(s, tag))
	never := registry.Digest([]byte(note(s, "never")))
	op := &history.Op{Kind: kindProbe, Key: tag, Input: never + " " + digest}
	w.repository.put(ctx, s, op, tag, content, "If-Match", `"`+never+`"`)
	return op
}

// keep makes a piece known to readers.
func (w *quorumless) keep(p piece) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pieces) < maxPieces {
		w.pieces = append(w.pieces, p)
	} else {
		w.pieces[w.pushed%maxPieces] = p
	}
	w.pushed++
}

// read asks for a tag, or for something that was acknowledged by its digest.
func (w *quorumless) read(ctx context.Context, s *Session) *history.Op {
	one, found := w.choose(s)
	switch n := s.Rand.IntN(100); {
	case n < 40 || !found:
		return w.readTag(ctx, s, w.tags.take(s.Rand.IntN(quorumlessWriters)).key)
	case n < 75:
		return w.readDigest(ctx, s, kindDigest, one.manifest)
	}
	return w.readDigest(ctx, s, kindBlob, one.blob)
}

// choose returns a piece, if there is one: one of the last few, of the first, or any.
func (w *quorumless) choose(s *Session) (one piece, found bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pieces) == 0 {
		return piece{}, false
	}
	switch s.Rand.IntN(3) {
	case 0:
		back := s.Rand.IntN(min(len(w.pieces), lastPieces))
		return w.pieces[(w.pushed-1-back)%len(w.pieces)], true
	case 1:
		return w.pieces[s.Rand.IntN(min(len(w.pieces), firstPieces))], true
	}
	return w.pieces[s.Rand.IntN(len(w.pieces))], true
}

// readTag asks for a tag. A node that can't tell has to say when to ask again.
func (w *quorumless) readTag(ctx context.Context, s *Session, tag string) *history.Op {
	return w.readTagBy(ctx, s, http.MethodGet, tag)
}

// readTagBy is readTag by GET or HEAD.
func (w *quorumless) readTagBy(ctx context.Context, s *Session, method, tag string) *history.Op {
	op := &history.Op{Kind: kindGet, Key: tag}
	if method == http.MethodHead {
		op.Kind = kindHead
	}
	w.judgeWait(op, w.repository.read(ctx, s, op, method, tag))
	return op
}

// judgeWait adds an anomaly if a node that can't tell does not say when to ask again.
func (w *quorumless) judgeWait(op *history.Op, reply *registry.Reply) {
	if reply != nil && reply.Status == http.StatusServiceUnavailable && reply.Header.Get("Retry-After") == "" {
		w.found.add(Refused, "%s %s: a 503 without Retry-After (%s, %s)", op.Kind, op.Key, op.Node, seconds(op.Return))
	}
}

// readDigest asks for content that was acknowledged.
func (w *quorumless) readDigest(ctx context.Context, s *Session, kind, digest string) *history.Op {
	op := &history.Op{Kind: kind, Key: digest, Input: digest, Outcome: history.Unknown}
	endpoint, mediaType := "manifests", registry.ManifestType
	if kind == kindBlob {
		endpoint, mediaType = "blobs", blobType
	}
	reply, err := s.get(ctx, op, w.repository.path(endpoint, digest))
	switch {
	case err != nil && registry.NotSent(err): // it was not asked
		op.Outcome = history.Fail
	case err != nil:
	case reply.Status == http.StatusOK && registry.Digest(reply.Body) != digest:
		w.found.add(WrongBytes, "%s %s: the reply has bytes with the digest %s (%s, %s)", kind, digest, registry.Digest(reply.Body), op.Node, seconds(op.Return))
	case reply.Status == http.StatusOK:
		if !w.repository.checkContent(op, http.MethodGet, reply, mediaType) {
			break
		}
		op.Outcome, op.Output = history.OK, foundHere
		if reply.Header.Get("Warning") != "" {
			op.Output = foundAlone
		}
	case reply.Status == http.StatusNotFound:
		op.Outcome, op.Output = history.OK, absent
	default:
		w.repository.judgeRefusal(op, reply, err)
	}
	return op
}
