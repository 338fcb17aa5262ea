package blobstore

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/atollregistry/atoll/proto"
)

// Names of the digest algorithms, as in a digest.
const (
	sha256Name = "sha256"
	sha512Name = "sha512"
)

// Progress is how far an upload has come. It is all that a node needs to go on
// with an upload that another node began.
type Progress struct {
	// UploadID steers placement: extents of one upload prefer the same nodes.
	// Empty for a blob pushed in one request.
	UploadID string
	// Size is the bytes taken so far.
	Size uint64
	// Hashes are the running hashes over these bytes. SHA-256 is always among
	// them once Size > 0; others are carried on if they were there from the
	// start.
	Hashes []*proto.HashState
}

// Digest returns the digest of the bytes taken so far, such as
// "sha256:e3b0...". It fails with ErrHashState when no such hash was kept, or
// its state can't be read.
func (p Progress) Digest(algorithm string) (string, error) {
	hashes, err := resumeHashes(p)
	if err != nil {
		return "", err
	}
	for _, running := range hashes {
		if running.algorithm == algorithm {
			return algorithm + ":" + hex.EncodeToString(running.Sum(nil)), nil
		}
	}
	return "", fmt.Errorf("digest upload %s: no %s was kept: %w", p.UploadID, algorithm, ErrHashState)
}

// runningHash is a hash whose state can be stored and loaded.
type runningHash struct {
	algorithm string
	hash.Hash
}

// runningHashes are the hashes kept over one upload. Not safe for concurrent
// use.
type runningHashes []runningHash

// resumeHashes loads the hashes of an upload. SHA-256 is started if nothing was
// taken yet.
func resumeHashes(p Progress) (runningHashes, error) {
	var hashes runningHashes
	kept := false
	for _, state := range p.Hashes {
		running, err := newHash(state.GetAlgorithm())
		if err != nil {
			return nil, fmt.Errorf("resume upload %s: %w", p.UploadID, err)
		}
		loader := running.Hash.(encoding.BinaryUnmarshaler)
		if err := loader.UnmarshalBinary(state.GetState()); err != nil {
			return nil, fmt.Errorf("resume upload %s: load %s: %w: %w", p.UploadID, state.GetAlgorithm(), ErrHashState, err)
		}
		kept = kept || running.algorithm == sha256Name
		hashes = append(hashes, running)
	}
	if kept {
		return hashes, nil
	}
	if p.Size > 0 {
		return nil, fmt.Errorf("resume upload %s at %d bytes: no sha256 was kept: %w", p.UploadID, p.Size, ErrHashState)
	}
	return append(hashes, runningHash{algorithm: sha256Name, Hash: sha256.New()}), nil
}

func newHash(algorithm string) (runningHash, error) {
	switch algorithm {
	case sha256Name:
		return runningHash{algorithm: algorithm, Hash: sha256.New()}, nil
	case sha512Name:
		return runningHash{algorithm: algorithm, Hash: sha512.New()}, nil
	}
	return runningHash{}, fmt.Errorf("hash %q: %w", algorithm, ErrHashState)
}

// write adds bytes to every hash.
func (h runningHashes) write(p []byte) {
	for _, running := range h {
		_, _ = running.Write(p) // A hash never fails: see hash.Hash.
	}
}

// states returns the hashes in the form in which the upload's record keeps them.
func (h runningHashes) states() ([]*proto.HashState, error) {
	states := make([]*proto.HashState, 0, len(h))
	for _, running := range h {
		state, err := running.Hash.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("store %s: %w: %w", running.algorithm, ErrHashState, err)
		}
		states = append(states, &proto.HashState{Algorithm: running.algorithm, State: state})
	}
	return states, nil
}

// hasher hashes stripes on a goroutine of its own while they are encoded and
// sent: of the steps of an append that keep one processor busy, it is the longest.
type hasher struct {
	hashes  runningHashes
	queue   chan hashItem
	stopped chan struct{}
}

// hashItem is a stripe or bytes to be hashed, or a channel to be closed when everything
// before it is.
type hashItem struct {
	stripe  *stripe
	bytes   []byte
	reached chan struct{}
}

// startHasher must be followed by stop.
func startHasher(hashes runningHashes) *hasher {
	h := &hasher{hashes: hashes, queue: make(chan hashItem, maxStripesInFlight), stopped: make(chan struct{})}
	go h.run() // stop waits for it.
	return h
}

func (h *hasher) run() {
	defer close(h.stopped)
	for item := range h.queue {
		if item.reached != nil {
			close(item.reached)
			continue
		}
		if item.stripe == nil {
			h.hashes.write(item.bytes)
			continue
		}
		h.hashes.write(item.stripe.buf.data[:item.stripe.filled])
		item.stripe.release()
	}
}

// write hashes a stripe soon. A hasher that is nil hashes nothing.
func (h *hasher) write(st *stripe) {
	if h == nil {
		return
	}
	st.retain()
	h.queue <- hashItem{stripe: st}
}

// writeBytes is write for bytes that are in no stripe, and do not change any more.
func (h *hasher) writeBytes(p []byte) {
	if h != nil {
		h.queue <- hashItem{bytes: p}
	}
}

// states returns the hashes over all that was written so far.
func (h *hasher) states() ([]*proto.HashState, error) {
	reached := make(chan struct{})
	h.queue <- hashItem{reached: reached}
	<-reached
	return h.hashes.states()
}

func (h *hasher) stop() {
	close(h.queue)
	<-h.stopped
}
