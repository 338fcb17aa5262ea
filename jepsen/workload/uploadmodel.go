package workload

import (
	"math/bits"

	"github.com/anishathalye/porcupine"

	"github.com/atollregistry/atoll/jepsen/history"
)

// The kinds of steps that no client has asked for, see uploadSteps.
const (
	kindPart   = "part"
	kindVanish = "vanish"
	kindSight  = "sight"
)

// phase is what has become of an upload.
type phase int

const (
	open phase = iota
	finished
	dropped
)

// uploadState is an upload as the model sees it: how many bytes it has, not which, since all writers send
// the same. By is the id of the step that has written a part of its chunk last, or 0. Sighted has the
// bits of those that have found the upload open.
type uploadState struct {
	phase   phase
	size    int
	by      int
	sighted uint32
}

// grown returns the upload with another size, ended one that goes on no more.
func (s uploadState) grown(size, by int) uploadState {
	return uploadState{size: size, by: by, sighted: s.sighted}
}

func (s uploadState) ended(as phase) uploadState { return uploadState{phase: as, sighted: s.sighted} }

// uploadStep is an operation on an upload as the model sees it.
type uploadStep struct {
	op             *history.Op
	kind           string
	said           verdict
	id             int
	offset, length int
	size           int    // that the reply tells
	excused        bool   // a 404 is no wonder though the upload is finished
	lossy          bool   // the upload, or its blob, may have been found to be lost
	sight          uint32 // the bit of a PUT that was told 404
	parts          []int  // sizes at which a chunk may have been cut
}

// maxSights is how many PUTs of one upload may be told 404 so that the model knows whether they have found
// it open.
const maxSights = 32

// sights hands out the bits of PUTs that were told 404.
type sights uint32

// next returns another bit; 0 if there are no more.
func (s *sights) next() uint32 {
	n := bits.OnesCount32(uint32(*s))
	if n == maxSights {
		return 0
	}
	*s |= 1 << n
	return 1 << n
}

// uploadModel is an upload right after its start.
func uploadModel() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{uploadState{}} },
		Step: func(state, input, _ any) (next []any) {
			for _, possible := range input.(uploadStep).from(state.(uploadState)) {
				next = append(next, possible)
			}
			return next
		},
	}
	return model.ToModel()
}

// from returns the states that a step can have led to.
func (step uploadStep) from(s uploadState) []uploadState {
	same := []uploadState{s}
	none := []uploadState(nil)
	fits := s.phase == open && (s.size == step.offset || s.by == step.id)
	switch {
	case step.kind == kindPart:
		if !fits {
			return same
		}
		for _, size := range step.parts {
			same = append(same, s.grown(size, step.id))
		}
		return same
	case step.kind == kindVanish, step.kind == kindCancel && step.said == unknown:
		if s.phase == open {
			same = append(same, s.ended(dropped))
		}
		return same
	case step.kind == kindSight:
		if s.phase == open {
			s.sighted |= step.sight
			same = append(same, s)
		}
		return same
	case step.said == gone:
		if step.mayBeGone(s) {
			return same
		}
		return none
	case step.said == refused:
		if s.phase == open && s.size == step.size && s.size != step.offset {
			return same
		}
		return none
	}
	switch step.kind {
	case kindPatch:
		return step.patched(s, fits)
	case kindFinish:
		return step.put(s, fits)
	case kindStatus:
		if s.phase == open && s.size == step.size {
			return same
		}
	case kindCancel:
		if s.phase == open {
			return []uploadState{s.ended(dropped)}
		}
	case kindRead:
		if s.phase == finished {
			return same
		}
	case kindBadFinish: // judgeDigests says what must not be
		return same
	}
	return none
}

// mayBeGone says whether a client may be told 404.
func (step uploadStep) mayBeGone(s uploadState) bool {
	switch s.phase {
	case open:
		return step.kind == kindRead
	case finished:
		return step.excused || step.kind != kindRead && step.kind != kindFinish ||
			step.kind == kindFinish && (step.lossy || s.sighted&step.sight != 0)
	}
	return true
}

func (step uploadStep) patched(s uploadState, fits bool) []uploadState {
	after := s.grown(step.offset+step.length, 0)
	switch {
	case step.said == unknown && fits:
		return []uploadState{s, after}
	case step.said == unknown:
		return []uploadState{s}
	case fits && step.size == after.size:
		return []uploadState{after}
	}
	return nil
}

func (step uploadStep) put(s uploadState, fits bool) []uploadState {
	after := s.ended(finished)
	switch {
	case step.said == taken && (fits || s.phase == finished):
		return []uploadState{after}
	case step.said == taken:
		return nil
	case s.phase == open && fits && step.lossy: // a PUT that finds a loss ends the upload
		return []uploadState{s, after, s.ended(dropped)}
	case s.phase == open && fits:
		return []uploadState{s, after}
	}
	return []uploadState{s}
}
