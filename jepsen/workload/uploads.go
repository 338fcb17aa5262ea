package workload

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

const (
	uploadsClients = 5
	// uploadsPause is between two uploads of a client.
	uploadsPause = time.Second
	// uploadsKept bounds the bytes of blobs that are kept by a manifest; the others are
	// collected.
	uploadsKept       = 400 << 20
	uploadsRepository = "uploads"
	// uploadsMinimum is how many requests must be acknowledged in a second.
	uploadsMinimum = 0.5
)

// uploads has uploads that are written in chunks through any nodes, with repetitions, wrong
// offsets, several writers, wrong digests and cancellations: each is an append-only
// buffer, and must be linearizable.
type uploads struct {
	pause    time.Duration
	patience time.Duration
	found    *findings

	mu        sync.Mutex // guards all below
	made      int
	kept      []content // whose manifest was answered 201
	keptBytes int
}

// NewUploads returns the workload of uploads in many steps.
func NewUploads() Workload {
	return &uploads{pause: uploadsPause, patience: finalBound, found: &findings{workload: "uploads"}}
}

// Name implements Workload.
func (w *uploads) Name() string { return "uploads" }

// MinimumOps implements Workload.
func (w *uploads) MinimumOps() float64 { return uploadsMinimum }

// Run implements Workload.
func (w *uploads) Run(ctx context.Context, env *Env) error {
	return drive(ctx, env, w.Name(), uploadsClients, w.pause, w.step)
}

// step takes one upload from its beginning to its end.
func (w *uploads) step(ctx context.Context, s *Session) error {
	made := w.next(s)
	writer := &uploadWriter{Session: s, repository: uploadsRepository, content: made, bytes: made.bytes(s.Seed), pause: min(uploadPause, w.pause), silences: new(atomic.Int64)}
	if writer.start(ctx) != taken {
		return nil
	}
	n := s.Rand.IntN(10)
	switch n {
	case 0:
		w.cancelled(ctx, writer)
		return nil
	case 1:
		w.wrongDigest(ctx, writer)
		return nil
	}
	switch n {
	case 2, 3, 4:
		writer = twoWriters(ctx, writer)
	default:
		writer.write(ctx, disturbance(writer, n))
	}
	if writer.finished > 0 {
		w.finished(ctx, writer)
	}
	return nil
}

func (w *uploads) next(s *Session) content {
	w.mu.Lock()
	w.made++
	name := fmt.Sprintf("upload-%05d", w.made)
	w.mu.Unlock()
	size := 0
	switch n := s.Rand.IntN(100); {
	case n < 70:
		size = 2<<10 + s.Rand.IntN(58<<10)
	case n < 95:
		size = 60<<10 + s.Rand.IntN(340<<10)
	default:
		size = 400<<10 + s.Rand.IntN(1200<<10)
	}
	return newContent(s.Seed, name, size)
}

// disturbance returns what a writer does before each of its chunks.
func disturbance(w *uploadWriter, n int) func(ctx context.Context, offset, length int) {
	switch n {
	case 5: // the same chunk before, and then by its own
		return func(ctx context.Context, offset, length int) { w.twin().patch(ctx, offset, length) }
	case 6: // the same chunk, twice at once
		return func(ctx context.Context, offset, length int) {
			var both sync.WaitGroup
			for _, one := range []*uploadWriter{w.twin(), w} {
				both.Go(func() { one.patch(ctx, offset, length) })
			}
			both.Wait()
		}
	case 7: // a chunk that begins elsewhere
		return func(ctx context.Context, offset, length int) {
			elsewhere := w.Rand.IntN(len(w.bytes) - 1)
			if elsewhere != offset {
				w.twin().patch(ctx, elsewhere, min(length, len(w.bytes)-elsewhere))
			}
		}
	case 8:
		return func(ctx context.Context, _, _ int) { w.twin().status(ctx) }
	}
	return nil
}

// twoWriters has two write at once, each on from what it is told. Both finish; it returns
// one that was told so, if there is one.
func twoWriters(ctx context.Context, first *uploadWriter) *uploadWriter {
	var both sync.WaitGroup
	second := first.twin()
	both.Go(func() { second.write(ctx, nil) })
	first.write(ctx, nil)
	both.Wait()
	if first.finished == 0 {
		return second
	}
	return first
}

// cancelled gives an upload up in the middle; it must be gone then.
func (w *uploads) cancelled(ctx context.Context, writer *uploadWriter) {
	size := len(writer.bytes) / 2
	writer.patch(ctx, 0, size)
	if writer.cancel(ctx) != taken {
		return
	}
	writer.status(ctx)
	writer.patch(ctx, size, len(writer.bytes)-size)
}

// wrongDigest ends an upload by the digest of other bytes. Nothing must come of it.
func (w *uploads) wrongDigest(ctx context.Context, writer *uploadWriter) {
	size := len(writer.bytes)
	if said, told := writer.patch(ctx, 0, size); said != taken || told != size {
		return
	}
	other := newContent(writer.Seed, writer.content.Name+"/other", size)
	writer.finishWrong(ctx, other.Digest)
	op := history.Op{Kind: kindAbsent, Key: writer.content.Name, Input: other.Digest}
	op.Output = writer.readBlob(ctx, &op, writer.repository, other)
	op.Outcome = outcomeOfRead(op.Output)
	writer.History.Add(op)
	writer.status(ctx)
}

// finished reads a blob right after it was acknowledged, has its last step repeated, and keeps it.
func (w *uploads) finished(ctx context.Context, writer *uploadWriter) {
	twin := writer.twin()
	twin.read(ctx)
	if writer.Rand.IntN(2) == 0 {
		offset := len(writer.bytes)
		if writer.Rand.IntN(2) == 0 {
			offset /= 2 // as the request may have been that got no reply
		}
		twin.finish(ctx, offset)
		writer.read(ctx)
	}
	if writer.Rand.IntN(2) == 0 && w.mayKeep(writer.content) {
		w.keep(ctx, writer, max(writer.finished, twin.finished))
	}
}

func (w *uploads) mayKeep(blob content) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keptBytes += blob.Size
	return w.keptBytes <= uploadsKept
}

// keep refers to a blob by a manifest. Since is when the node was asked that said it is there.
func (w *uploads) keep(ctx context.Context, writer *uploadWriter, since time.Duration) {
	img := keptImage(writer.content)
	p := &pusher{Session: writer.Session, repository: img.Repository, pause: min(pushPause, w.pause)}
	if p.putManifest(ctx, writer.content.Name, img.Digest, img.manifest(), since).Outcome != history.OK {
		return
	}
	twin := writer.twin()
	twin.read(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, writer.content)
}

// keptImage is the image whose config is the blob of an upload.
func keptImage(blob content) image {
	img := image{Name: blob.Name, Repository: uploadsRepository, Config: blob}
	img.Digest = registry.Digest(img.manifest())
	return img
}

// Look implements Workload. What was kept must be there, on one node each.
func (w *uploads) Look(ctx context.Context, env *Env) error {
	var looks []lastLook
	nodes := env.Nodes()
	for i, blob := range w.kept {
		img := keptImage(blob)
		looks = append(looks, lookAt(nodes[i%len(nodes)], blob.Name, img.Digest, func(ctx context.Context, s *Session, op *history.Op) string {
			return s.readImage(ctx, op, img, img.Digest)
		}))
	}
	return lookAtLast(ctx, env, w.Name(), w.patience, w.pause, looks)
}

// Judge implements Workload.
func (w *uploads) Judge(ctx context.Context, env *Env) ([]Anomaly, error) {
	err := judgeUploads(ctx, w.found, env.History.Ops(), env.History.Faults())
	return w.found.all(), err
}
