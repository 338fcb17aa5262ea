package netlab

import (
	"container/heap"
	"sync"
	"time"
)

const (
	// heldLimit bounds the memory of all packets that are held back, in bytes. Packets that
	// find it used up are lost.
	heldLimit = 128 << 20
	// parcelOverhead is what a held packet costs besides its buffer, roughly, in bytes.
	parcelOverhead = 128
	// poolLimit bounds the parcels that are kept for use again, and so their buffers.
	poolLimit = 256
)

// parcel is a packet that is held back.
type parcel struct {
	wire   *wire
	due    time.Time
	number uint64 // parcels that are due at the same time leave in the order they came
	packet []byte
}

func (p *parcel) memory() int { return cap(p.packet) + parcelOverhead }

// post holds packets back until they are due.
type post struct {
	wake chan struct{} // holds one: the first parcel has changed

	mu      sync.Mutex
	parcels parcels
	memory  int
	number  uint64
	pool    []*parcel
}

func newPost() *post { return &post{wake: make(chan struct{}, 1)} }

// add holds a copy of a packet back. It returns false if there is no room.
func (p *post) add(w *wire, packet []byte, due time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.memory >= heldLimit {
		return false
	}
	held := p.take()
	p.number++
	held.wire, held.due, held.number = w, due, p.number
	held.packet = append(held.packet[:0], packet...)
	p.memory += held.memory()
	heap.Push(&p.parcels, held)
	if p.parcels[0] == held {
		select {
		case p.wake <- struct{}{}:
		default: // run has not looked since the last time
		}
	}
	return true
}

func (p *post) take() *parcel {
	if len(p.pool) == 0 {
		return new(parcel)
	}
	last := p.pool[len(p.pool)-1]
	p.pool = p.pool[:len(p.pool)-1]
	return last
}

// next removes the first parcel if it is due, else says how long it has to wait. Without
// parcels that is maxDelay: add wakes run.
func (p *post) next(now time.Time) (*parcel, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.parcels) == 0 {
		return nil, maxDelay
	}
	if wait := p.parcels[0].due.Sub(now); wait > 0 {
		return nil, wait
	}
	due := heap.Pop(&p.parcels).(*parcel)
	p.memory -= due.memory()
	return due, 0
}

func (p *post) giveBack(used *parcel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pool) < poolLimit {
		p.pool = append(p.pool, used)
	}
}

// run sends parcels on their way when they are due, until stop is closed. What is held then
// is lost.
func (p *post) run(stop <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, wait := p.next(time.Now())
		if due != nil {
			due.wire.arrive(due.packet)
			p.giveBack(due)
			wait = 0
		}
		if wait == 0 {
			select {
			case <-stop:
				return
			default:
				continue
			}
		}
		timer.Reset(wait)
		select {
		case <-stop:
			return
		case <-timer.C:
		case <-p.wake:
		}
	}
}

// parcels is a heap, the first due first.
type parcels []*parcel

func (p parcels) Len() int { return len(p) }

func (p parcels) Less(i, j int) bool {
	if p[i].due.Equal(p[j].due) {
		return p[i].number < p[j].number
	}
	return p[i].due.Before(p[j].due)
}

func (p parcels) Swap(i, j int) { p[i], p[j] = p[j], p[i] }

// Push is for container/heap.
func (p *parcels) Push(x any) { *p = append(*p, x.(*parcel)) }

// Pop is for container/heap.
func (p *parcels) Pop() any {
	last := len(*p) - 1
	popped := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	return popped
}
