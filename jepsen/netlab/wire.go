package netlab

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// queueTime and queuePackets bound what waits for the bandwidth of one direction.
	queueTime    = 200 * time.Millisecond
	queuePackets = 4
	// maxDelay bounds the delay and the jitter of a link.
	maxDelay = time.Minute
)

// wire is one direction between two hosts.
type wire struct {
	from, to *Host
	link     atomic.Pointer[Link] // nil: perfect

	// Only the goroutine that reads the packets of from uses these.
	random *rand.Rand // of this wire alone: what it does does not depend on other wires
	shaped *Link      // the link that free belongs to
	free   time.Time  // when the last packet that was accepted has left the queue

	forwarded, forwardedBytes atomic.Int64
	dropped, droppedBytes     atomic.Int64
	delayed, duplicated       atomic.Int64
}

func newWire(from, to *Host, seed uint64) *wire {
	stream := uint64(from.number)<<8 | uint64(to.number)
	return &wire{from: from, to: to, random: rand.New(rand.NewPCG(seed, stream))}
}

func (w *wire) pair() Pair { return Pair{From: w.from.name, To: w.to.name} }

// carry takes one packet to its destination in the way of the present link. The packet
// belongs to the caller again when carry returns.
func (w *wire) carry(packet []byte, held *post) {
	link := w.link.Load()
	if link == nil {
		w.deliver(packet)
		return
	}
	now := time.Now()
	copies, due := w.schedule(link, len(packet), now)
	switch copies {
	case 0:
		w.drop(packet)
	case 2:
		w.duplicated.Add(1)
	}
	for _, at := range due[:copies] {
		switch {
		case !at.After(now):
			w.deliver(packet)
		case held.add(w, packet, at):
			w.delayed.Add(1)
		default:
			w.drop(packet)
		}
	}
}

// schedule decides how often a packet arrives, and when.
func (w *wire) schedule(link *Link, size int, now time.Time) (copies int, due [2]time.Time) {
	if link != w.shaped { // the queue of another link says nothing about this one
		w.shaped, w.free = link, time.Time{}
	}
	if link.Cut || w.random.Float64() < link.Loss {
		return 0, due
	}
	sent, ok := w.transmit(link.BytesPerSecond, size, now)
	if !ok {
		return 0, due
	}
	copies = 1
	if w.random.Float64() < link.Duplicate {
		copies = 2
	}
	for i := range copies {
		due[i] = sent.Add(link.Delay)
		if link.Jitter > 0 {
			due[i] = due[i].Add(time.Duration(w.random.Int64N(int64(link.Jitter))))
		}
	}
	return copies, due
}

// transmit puts a packet at the end of the queue for the bandwidth and says when it will have
// left it; false if the queue is full.
func (w *wire) transmit(bytesPerSecond int64, size int, now time.Time) (time.Time, bool) {
	if bytesPerSecond == 0 {
		return now, true
	}
	perPacket := transmitTime(maxPacket, bytesPerSecond)
	begin := now
	if w.free.After(now) {
		begin = w.free
	}
	if begin.Sub(now) > max(queueTime, queuePackets*perPacket) {
		return time.Time{}, false
	}
	w.free = begin.Add(transmitTime(size, bytesPerSecond))
	return w.free, true
}

func transmitTime(size int, bytesPerSecond int64) time.Duration {
	return time.Duration(float64(size) / float64(bytesPerSecond) * float64(time.Second))
}

// arrive ends the way of a packet that was held back.
func (w *wire) arrive(packet []byte) {
	if link := w.link.Load(); link != nil && link.Cut {
		w.drop(packet)
		return
	}
	w.deliver(packet)
}

// deliver hands a packet to the destination. That never waits.
func (w *wire) deliver(packet []byte) {
	if !w.to.device.write(packet) {
		w.drop(packet)
		return
	}
	w.forwarded.Add(1)
	w.forwardedBytes.Add(int64(len(packet)))
}

func (w *wire) drop(packet []byte) {
	w.dropped.Add(1)
	w.droppedBytes.Add(int64(len(packet)))
}

func (w *wire) counters() Counters {
	return Counters{
		Forwarded: w.forwarded.Load(), ForwardedBytes: w.forwardedBytes.Load(),
		Dropped: w.dropped.Load(), DroppedBytes: w.droppedBytes.Load(),
		Delayed: w.delayed.Load(), Duplicated: w.duplicated.Load(),
	}
}
