package workload

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	imagesClients = 6
	// imagesPause is between two steps of a client, of which every second one is a push: one a
	// second in all.
	imagesPause = 2500 * time.Millisecond
	// imagesPerSecond bounds the bytes pushed on average, imagesTotal those of a whole run. When one
	// is reached, images have small layers only.
	imagesPerSecond = 1500 << 10
	imagesTotal     = 1200 << 20
	// imagesFinal bounds the bytes that are read after the run. If every image from every node is
	// more, every image is read from one node, and every manifest from all.
	imagesFinal = 2 << 30
	// imagesRecent is how many images count as recent: half of all pulls are of these.
	imagesRecent = 20
	// imagesMinimum is how many operations, requests of a push or pulls, must be
	// acknowledged in a second.
	imagesMinimum = 0.5
)

// images has whole images that are pushed and pulled through any nodes, each under a tag of
// its own, and never deleted.
//
// Its operations have the image's name as their key: "head" and "blob" (one try to push a blob;
// layers of an older image count as that one's), "put" (the manifest), "pull" (a
// whole image, by tag or digest), "range", and "final".
type images struct {
	pause    time.Duration
	patience time.Duration
	found    *findings

	mu     sync.Mutex // guards all below
	acked  []image    // whose manifest was answered 201
	made   int
	pushed int // bytes
	began  time.Duration
}

// NewImages returns the workload of images that are pushed, pulled and kept.
func NewImages() Workload {
	return &images{pause: imagesPause, patience: finalBound, found: &findings{workload: "images"}}
}

// Name implements Workload.
func (w *images) Name() string { return "images" }

// MinimumOps implements Workload.
func (w *images) MinimumOps() float64 { return imagesMinimum }

// Run implements Workload.
func (w *images) Run(ctx context.Context, env *Env) error {
	w.began = env.History.Now()
	return drive(ctx, env, w.Name(), imagesClients, w.pause, w.step)
}

func (w *images) step(ctx context.Context, s *Session) error {
	if s.Rand.IntN(2) == 0 {
		w.push(ctx, s)
		return nil
	}
	w.pull(ctx, s)
	return nil
}

// push pushes a new image; others may pull it once it is acknowledged.
func (w *images) push(ctx context.Context, s *Session) {
	img := w.next(s)
	p := &pusher{Session: s, repository: img.Repository, pause: min(pushPause, w.pause)}
	if acked, _ := p.pushImage(ctx, img, tagOf(img), img.Name, ownerOf); !acked {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = append(w.acked, img)
}

// tagOf returns the tag of an image, ownerOf the name of the image that a blob was made for.
func tagOf(img image) string { return img.Name }

func ownerOf(blob content) string {
	owner, _, _ := strings.Cut(blob.Name, "/")
	return owner
}

// next makes up an image. At times it has a layer of an image before it.
func (w *images) next(s *Session) image {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made++
	name := fmt.Sprintf("image-%05d", w.made)
	repository := fmt.Sprintf("images/r%d", s.Rand.IntN(3))
	elapsed := (s.History.Now() - w.began).Seconds()
	small := w.pushed > imagesTotal || float64(w.pushed) > imagesPerSecond*(elapsed+10)
	config := newContent(s.Seed, name+"/config", 200+s.Rand.IntN(2000))
	var layers []content
	for i := range 2 + s.Rand.IntN(3) {
		layers = append(layers, newContent(s.Seed, fmt.Sprintf("%s/layer-%d", name, i), layerSize(s, small)))
	}
	if old := w.older(s, repository); old != nil && s.Rand.IntN(4) == 0 {
		layers[0] = old.Layers[s.Rand.IntN(len(old.Layers))]
	}
	img := newImage(name, repository, config, layers)
	w.pushed += img.size()
	return img
}

// older returns an acknowledged image of a repository, if it comes upon one. The caller holds mu.
func (w *images) older(s *Session, repository string) *image {
	if len(w.acked) == 0 {
		return nil
	}
	if old := w.acked[s.Rand.IntN(len(w.acked))]; old.Repository == repository {
		return &old
	}
	return nil
}

// layerSize returns a number of bytes: most are stored as copies, some are erasure-coded in one
// stripe or a few, and one in a hundred is large.
func layerSize(s *Session, small bool) int {
	n := s.Rand.IntN(100)
	switch {
	case small || n < 84:
		return 1<<10 + s.Rand.IntN(99<<10)
	case n < 99:
		return 300<<10 + s.Rand.IntN(1700<<10)
	}
	return 8<<20 + s.Rand.IntN(3)
}

// pull reads an acknowledged image, and at times a range of one of its layers.
func (w *images) pull(ctx context.Context, s *Session) {
	w.mu.Lock()
	known := len(w.acked)
	if known == 0 {
		w.mu.Unlock()
		return
	}
	i := s.Rand.IntN(known)
	if s.Rand.IntN(2) == 0 {
		i = known - 1 - s.Rand.IntN(min(known, imagesRecent))
	}
	img := w.acked[i]
	w.mu.Unlock()

	if s.Rand.IntN(3) == 0 {
		layer := img.Layers[s.Rand.IntN(len(img.Layers))]
		offset := s.Rand.IntN(layer.Size)
		length := 1 + s.Rand.IntN(layer.Size-offset)
		if s.Rand.IntN(2) == 0 {
			length = layer.Size - offset
		}
		op := history.Op{Kind: "range", Key: img.Name, Input: fmt.Sprintf("%d+%d", offset, length)}
		op.Output = s.readRange(ctx, &op, img.Repository, layer, offset, length)
		op.Outcome = outcomeOfRead(op.Output)
		s.History.Add(op)
		return
	}
	reference := tagOf(img)
	if s.Rand.IntN(2) == 0 {
		reference = img.Digest
	}
	op := history.Op{Kind: "pull", Key: img.Name, Input: reference}
	op.Output = s.readImage(ctx, &op, img, reference)
	op.Outcome = outcomeOfRead(op.Output)
	s.History.Add(op)
}

// Look implements Workload. Every acknowledged image must be whole.
func (w *images) Look(ctx context.Context, env *Env) error {
	return lookAtLast(ctx, env, w.Name(), w.patience, w.pause, w.lastLooks(env.Nodes()))
}

// Judge implements Workload.
func (w *images) Judge(_ context.Context, env *Env) ([]Anomaly, error) {
	judgeImages(w.found, env.History.Ops(), env.History.Faults())
	return w.found.all(), nil
}

// lastLooks returns the reads after the run, see imagesFinal.
func (w *images) lastLooks(nodes []Node) (looks []lastLook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	total := 0
	for _, img := range w.acked {
		total += img.size()
	}
	everywhere := total*len(nodes) <= imagesFinal
	for i, img := range w.acked {
		for n, node := range nodes {
			whole := everywhere || i%len(nodes) == n
			looks = append(looks, lookAt(node, img.Name, tagOf(img), func(ctx context.Context, s *Session, op *history.Op) string {
				if whole {
					return s.readImage(ctx, op, img, tagOf(img))
				}
				return s.readManifest(ctx, op, img, tagOf(img))
			}))
		}
	}
	return looks
}

// judgeImages judges a history of images. An image is acknowledged from the moment on in which
// the 201 of its manifest had come; nobody deletes images, so that from then on all of it must
// be there through any node: see judgeKept, and for layers that images share with older ones as
// well, since a HEAD of them counts as a read of the older image. A manifest may be refused for want
// of blobs only if nobody was told lately that they are there: see judgeRefusals. Nothing else is refused.
func judgeImages(f *findings, ops []history.Op, faults []history.Fault) {
	acked := map[string]time.Duration{}
	for _, op := range ops {
		if op.Workload != f.workload || op.Kind != kindPut || op.Outcome != history.OK {
			continue
		}
		if at, known := acked[op.Key]; !known || op.Return < at {
			acked[op.Key] = op.Return
		}
	}
	f.judgeBytes(ops)
	f.judgeStatuses(ops)
	f.judgeKept(ops, faults, acked)
	f.judgeRefusals(ops, faults, promiseTime)
}
