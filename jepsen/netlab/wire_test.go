package netlab

import (
	"slices"
	"testing"
	"time"
)

// fates returns what a new wire does with some packets that come a millisecond apart.
func fates(seed uint64, link Link, count int) []time.Duration {
	w := newWire(&Host{number: 1}, &Host{number: 2}, seed)
	var all []time.Duration
	for i := range count {
		now := time.Unix(0, 0).Add(time.Duration(i) * time.Millisecond)
		copies, due := w.schedule(&link, 1000, now)
		for _, at := range due[:copies] {
			all = append(all, at.Sub(now))
		}
		if copies == 0 {
			all = append(all, -1)
		}
	}
	return all
}

func TestSeedDecides(t *testing.T) {
	link := Link{Loss: 0.3, Duplicate: 0.3, Delay: time.Millisecond, Jitter: time.Second}
	one := fates(1, link, 100)
	if !slices.Equal(one, fates(1, link, 100)) {
		t.Error("the same seed did different things")
	}
	if slices.Equal(one, fates(2, link, 100)) {
		t.Error("another seed did the same things")
	}
}

func TestJitterIsAddedToDelay(t *testing.T) {
	all := fates(1, Link{Delay: time.Second, Jitter: time.Second}, 1000)
	if least, most := slices.Min(all), slices.Max(all); least < time.Second || least > 1100*time.Millisecond ||
		most < 1900*time.Millisecond || most >= 2*time.Second {
		t.Errorf("from %s to %s", least, most)
	}
}

func TestBandwidthQueues(t *testing.T) {
	// Each packet takes 10 ms and one comes every millisecond: 9 ms more to wait each time.
	all := fates(1, Link{BytesPerSecond: 100_000}, 100)
	if all[0] != 10*time.Millisecond || all[1] != 19*time.Millisecond || all[2] != 28*time.Millisecond {
		t.Errorf("the first waited %v", all[:3])
	}
	bound := max(queueTime, queuePackets*transmitTime(maxPacket, 100_000))
	if most := slices.Max(all); most < bound || most > bound+10*time.Millisecond {
		t.Errorf("the longest waited %s in a queue of %s", most, bound)
	}
}

func TestNewLinkHasAnEmptyQueue(t *testing.T) {
	w := newWire(&Host{number: 1}, &Host{number: 2}, 1)
	now := time.Unix(0, 0)
	for range 10 {
		w.schedule(&Link{BytesPerSecond: 1000}, 1000, now)
	}
	if copies, due := w.schedule(&Link{BytesPerSecond: 1_000_000}, 1000, now); copies != 1 || due[0].Sub(now) != time.Millisecond {
		t.Errorf("%d copies after %s", copies, due[0].Sub(now))
	}
}

func TestPostIsBounded(t *testing.T) {
	p := newPost()
	now := time.Unix(0, 0)
	packet := make([]byte, 1<<20)
	held := 0
	for p.add(nil, packet, now) {
		held++
	}
	if most := heldLimit/len(packet) + 1; held == 0 || held > most {
		t.Errorf("%d packets are held, of at most %d", held, most)
	}
	for i := range held {
		got, _ := p.next(now)
		if got == nil || got.number != uint64(i+1) {
			t.Fatalf("packet %d came as %+v", i+1, got)
		}
		p.giveBack(got)
	}
	if p.memory != 0 || !p.add(nil, packet, now) {
		t.Errorf("an empty post holds %d bytes or takes nothing", p.memory)
	}
	if len(p.pool) > poolLimit {
		t.Errorf("%d parcels are kept", len(p.pool))
	}
}
