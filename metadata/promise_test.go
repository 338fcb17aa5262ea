package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// What clients are promised, held against random commands: a blob or a manifest
// that a node said is there stays for a time, and whatever a manifest refers to
// stays with it. Nodes have clocks that differ and apply the log when they like;
// any of them collects, as if the leader changed all the time; commands come late
// and twice.
const (
	promiseGrace = 10 * time.Hour // of blobs, and age of untagged manifests
	promiseSkew  = time.Hour      // clocks are right to within this
	promiseDelay = time.Hour / 2  // of a command between proposer and log
	promiseNodes = 3
	promiseSteps = 400
)

// promiseKept is how long a promise of a time holds by a right clock: the one who
// begins the time may be behind and late, the one who ends it ahead.
func promiseKept(promised time.Duration) time.Duration {
	return promised - 2*promiseSkew - promiseDelay
}

// world is a cluster without a network: a log, and nodes that have applied some
// of it.
type world struct {
	t     *testing.T
	rand  *rand.Rand
	now   time.Time
	log   []consensus.Entry
	nodes []*promiseNode
	late  []lateCommand
	// blobs and manifests that somebody relies on, by name, and until when.
	blobs     map[name]time.Time
	manifests map[name]time.Time
	// deleted are the manifests that a client has deleted: an index that lists one is
	// not whole any more.
	deleted map[name]bool
	// referrers are those that were there at the last check, with their subjects.
	referrers map[name]name
	pushed    int
}

type name struct{ repository, digest string }

type lateCommand struct {
	data []byte
	due  time.Time
}

// promiseNode is one node, and its log.
type promiseNode struct {
	w       *world
	machine *Machine
	store   *Store
	skew    time.Duration
}

func (n *promiseNode) clock() time.Time { return n.w.now.Add(n.skew) }

// ReadIndex brings the node up to date, by snapshot now and then.
func (n *promiseNode) ReadIndex(context.Context) error {
	from := n.w.nodes[n.w.rand.IntN(promiseNodes)]
	if applied, _ := n.machine.Applied(); n.w.rand.IntN(200) == 0 {
		if ahead, _ := from.machine.Applied(); ahead > applied {
			if err := n.machine.Restore(bytes.NewReader(snapshotOf(n.w.t, from.machine))); err != nil {
				return err
			}
		}
	}
	_, err := n.apply()
	return err
}

// apply carries out what is in the log, and returns the last entry's result.
func (n *promiseNode) apply() (result []byte, err error) {
	applied, _ := n.machine.Applied()
	if applied == uint64(len(n.w.log)) {
		return nil, nil
	}
	results, err := n.machine.Apply(n.w.log[applied:])
	if err != nil {
		return nil, err
	}
	return results[len(results)-1], nil
}

func (n *promiseNode) Propose(_ context.Context, command []byte) ([]byte, uint64, error) {
	result, err := n.commit(command)
	if err == nil && n.w.rand.IntN(100) == 0 {
		return nil, 0, io.ErrUnexpectedEOF // the answer is lost, and the store asks again
	}
	return result, uint64(len(n.w.log)), err
}

func (n *promiseNode) commit(command []byte) ([]byte, error) {
	n.w.log = append(n.w.log, consensus.Entry{Index: uint64(len(n.w.log) + 1), Term: 1, Data: command})
	return n.apply()
}

// TestCollectionKeepsItsPromises runs many commands in random order.
func TestCollectionKeepsItsPromises(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 2, rand.Uint64()} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			for range promiseSteps {
				w.now = w.now.Add(time.Duration(w.rand.Int64N(int64(20 * time.Minute))))
				w.deliver()
				w.check()
				w.step(w.nodes[w.rand.IntN(promiseNodes)])
				w.check()
			}
			w.end()
		})
	}
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rand: rand.New(rand.NewPCG(seed, 0)), now: time.UnixMilli(1_700_000_000_000),
		blobs: map[name]time.Time{}, manifests: map[name]time.Time{}, deleted: map[name]bool{}, referrers: map[name]name{},
	}
	for i := range promiseNodes {
		n := &promiseNode{w: w, machine: openMachine(t, t.TempDir()), skew: time.Duration(i-1) * promiseSkew}
		n.store = NewStore(n.machine, n, StoreConfig{
			Now: n.clock, BlobGrace: promiseGrace, UntaggedAge: promiseGrace, FinishedTTL: promiseGrace, UploadTTL: promiseGrace,
		})
		w.nodes = append(w.nodes, n)
	}
	joinNodes(t, w.nodes[0].store, "n1")
	return w
}

// deliver lets commands into the log that were on their way.
func (w *world) deliver() {
	waiting := w.late[:0]
	for _, late := range w.late {
		if late.due.After(w.now) {
			waiting = append(waiting, late)
			continue
		}
		if _, err := w.nodes[w.rand.IntN(promiseNodes)].commit(late.data); err != nil {
			w.t.Fatal(err)
		}
	}
	w.late = waiting
}

// send is a command that nobody waits for, and that comes late or twice.
func (w *world) send(n *promiseNode, command *proto.Command) {
	data, err := n.store.stamp(command)
	if err != nil {
		w.t.Fatal(err)
	}
	for range 1 + w.rand.IntN(2) {
		w.late = append(w.late, lateCommand{data, w.now.Add(time.Duration(w.rand.Int64N(int64(promiseDelay))))})
	}
}

func (w *world) repository() string { return fmt.Sprint("r", w.rand.IntN(2)) }
func (w *world) layer() string      { return fmt.Sprint("layer ", w.rand.IntN(6)) }
func (w *world) manifest() string   { return fmt.Sprint("manifest ", w.rand.IntN(8)) }

// step is something that a client or a leader does through a node.
func (w *world) step(n *promiseNode) {
	blob, manifest := name{w.repository(), digestOf(w.layer())}, name{w.repository(), digestOf(w.manifest())}
	switch w.rand.IntN(12) {
	case 0, 1:
		w.pushBlob(n)
	case 2, 3:
		_, err := n.store.RetainBlob(w.t.Context(), blob.repository, blob.digest)
		w.promised(w.blobs, blob, promiseGrace/2, err)
	case 4:
		to := name{w.repository(), blob.digest}
		w.promised(w.blobs, to, promiseGrace, n.store.MountBlob(w.t.Context(), to.repository, blob.repository, blob.digest))
	case 5, 6:
		w.pushManifest(n)
	case 7:
		_, err := n.store.RetainManifest(w.t.Context(), manifest.repository, manifest.digest)
		w.promised(w.manifests, manifest, promiseGrace/2, err)
	case 8:
		err := n.store.DeleteTag(w.t.Context(), w.repository(), "latest", nil)
		w.answered(err, ErrTagUnknown, ErrRepositoryUnknown)
	case 9:
		delete(w.manifests, manifest)
		w.deleted[manifest] = true
		w.answered(n.store.DeleteManifest(w.t.Context(), manifest.repository, manifest.digest, nil), ErrManifestUnknown, ErrRepositoryUnknown)
	case 10:
		_, err := n.store.Expire(w.t.Context())
		w.answered(err)
	case 11:
		w.send(n, &proto.Command{Body: &proto.Command_Expire{Expire: n.store.expireNow()}})
	}
}

// answered fails the test for an error that is not one of those.
func (w *world) answered(err error, expected ...error) {
	w.t.Helper()
	for _, e := range expected {
		if errors.Is(err, e) {
			return
		}
	}
	if err != nil {
		w.t.Error(err)
	}
}

// promised notes that a node said that something is there and so stays for a time,
// unless it said that it is not there.
func (w *world) promised(kept map[name]time.Time, what name, promise time.Duration, err error) {
	w.t.Helper()
	if err != nil {
		w.answered(err, ErrBlobUnknown, ErrManifestUnknown, ErrRepositoryUnknown)
		return
	}
	if until := w.now.Add(promiseKept(promise)); until.After(kept[what]) {
		kept[what] = until
	}
}

func (w *world) pushBlob(n *promiseNode) {
	w.pushed++
	repository, content := w.repository(), w.layer()
	err := n.store.CommitBlob(w.t.Context(), &proto.CommitBlob{
		Repository: repository, Digest: digestOf(content), Size: 7,
		Extents: []*proto.Extent{extentOf(fmt.Sprint("push ", w.pushed), 7, "n1")},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.promised(w.blobs, name{repository, digestOf(content)}, promiseGrace, nil)
}

// pushManifest puts an image, an index or a referrer, with a tag or without, large
// or small. What it needs and was promised must be there.
func (w *world) pushManifest(n *promiseNode) {
	repository, content := w.repository(), w.manifest()
	put := &proto.PutManifest{Repository: repository, Manifest: manifestOf(content)}
	number := int(content[len(content)-1] - '0') // the same content refers to the same
	switch {
	case number < 4:
		put.Manifest.Blobs = []*proto.Descriptor{{Digest: digestOf(fmt.Sprint("layer ", number))}, {Digest: digestOf(fmt.Sprint("layer ", number+2))}}
	case number < 6:
		put.RequireManifests = true
		put.Manifest.Manifests = []*proto.Descriptor{{Digest: digestOf(fmt.Sprint("manifest ", number-4))}, {Digest: digestOf(fmt.Sprint("manifest ", number-3))}}
	default:
		put.Manifest.Subject = digestOf(fmt.Sprint("manifest ", number-4))
	}
	if number%4 == 3 {
		w.pushed++
		put.Manifest.Content, put.Manifest.StoredAsBlob = nil, true
		put.Extents = []*proto.Extent{extentOf(fmt.Sprint("push ", w.pushed), put.GetManifest().GetSize(), "n1")}
	}
	if w.rand.IntN(2) == 0 {
		put.Tags = []string{"latest"}
	}
	err := n.store.PutManifest(w.t.Context(), put)
	if missing := (*ReferenceUnknownError)(nil); errors.As(err, &missing) {
		for _, digest := range missing.Digests {
			what := name{repository, digest}
			if w.now.Before(w.blobs[what]) || w.now.Before(w.manifests[what]) {
				w.t.Errorf("%s was refused for want of %v, which was promised", content, what)
			}
		}
		return
	}
	what := name{repository, put.GetManifest().GetDigest()}
	delete(w.deleted, what)
	w.promised(w.manifests, what, promiseGrace, err)
}

// newest is a node that has applied the whole log.
func (w *world) newest() *promiseNode {
	newest := w.nodes[0]
	for _, n := range w.nodes {
		if applied, _ := n.machine.Applied(); applied == uint64(len(w.log)) {
			newest = n
		}
	}
	if _, err := newest.apply(); err != nil {
		w.t.Fatal(err)
	}
	return newest
}

// check looks at the newest state.
func (w *world) check() {
	w.t.Helper()
	n := w.newest()
	if w.rand.IntN(50) == 0 {
		checkInvariants(w.t, n.machine)
	}
	if err := errors.Join(n.machine.view(w.checkPromises), n.machine.view(w.checkManifests)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) checkPromises(v view) error {
	for b, kept := range map[bucket]map[name]time.Time{bucketLinks: w.blobs, bucketManifests: w.manifests} {
		for what, until := range kept {
			if found, err := v.has(b, keyOf(what.repository, what.digest)); err != nil || !found && w.now.Before(until) {
				w.t.Errorf("%v is gone from %s, and was promised for %s more (%v)", what, b, until.Sub(w.now), err)
			}
		}
	}
	return nil
}

// checkManifests looks whether all is there that a manifest refers to, and all
// that refers to a manifest.
func (w *world) checkManifests(v view) error {
	for referrer, subject := range w.referrers {
		gone, err := v.has(bucketManifests, keyOf(referrer.repository, referrer.digest))
		gone = !gone && !w.deleted[referrer]
		there, subjectErr := v.has(bucketManifests, keyOf(subject.repository, subject.digest))
		if err := errors.Join(err, subjectErr); err != nil || gone && there {
			w.t.Errorf("referrer %v is gone, its subject is there (%v)", referrer, err)
		}
	}
	clear(w.referrers)
	return v.scan(bucketManifests, span{}, func(key, value []byte) error {
		var manifest proto.Manifest
		if err := decode(bucketManifests, key, value, &manifest); err != nil {
			return err
		}
		repository, digest := splitRepositoryKey(string(key))
		if manifest.GetSubject() != "" {
			w.referrers[name{repository, digest}] = name{repository, manifest.GetSubject()}
		}
		for _, blob := range manifest.GetBlobs() {
			if found, err := v.has(bucketLinks, keyOf(repository, blob.GetDigest())); err != nil || !found {
				w.t.Errorf("manifest %q refers to %s, which is gone (%v)", key, blob.GetDigest(), err)
			}
		}
		for _, child := range manifest.GetManifests() {
			found, err := v.has(bucketManifests, keyOf(repository, child.GetDigest()))
			if err != nil || !found && !w.deleted[name{repository, child.GetDigest()}] {
				w.t.Errorf("index %q lists %s, which is gone (%v)", key, child.GetDigest(), err)
			}
		}
		return nil
	})
}

// end lets everything go, and looks whether anything stays.
func (w *world) end() {
	n := w.nodes[0]
	for range 4 { // index, images, layers, and referrers
		w.now = w.now.Add(2 * promiseGrace)
		w.deliver()
		for _, repository := range []string{"r0", "r1"} {
			w.answered(n.store.DeleteTag(w.t.Context(), repository, "latest", nil), ErrTagUnknown, ErrRepositoryUnknown)
		}
		if _, err := n.store.Expire(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.now = w.now.Add(2 * promiseGrace)
	if _, err := n.store.Expire(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for _, node := range w.nodes {
		if _, err := node.apply(); err != nil {
			w.t.Fatal(err)
		}
		checkInvariants(w.t, node.machine)
		_, expected := n.machine.StateHash()
		if _, hash := node.machine.StateHash(); !bytes.Equal(hash, expected) {
			w.t.Errorf("state hashes %x and %x differ", hash, expected)
		}
		left := dump(w.t, node.machine, "links", "blobs", "manifests", "extents", "blob-references", "manifest-parents", "referrers")
		if left != "" {
			w.t.Errorf("what nothing refers to is there for ever:\n%s", left)
		}
	}
}
