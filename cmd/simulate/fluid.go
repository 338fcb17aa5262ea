package main

import "math"

// fluid is a world in which bytes flow: each flow gets as much as fairness allows, max-min, of every
// link that it goes through, at any time. Times are in seconds.
type fluid struct {
	now   float64
	flows []*flow
}

// link is something that carries so many bytes a second.
type link struct {
	capacity float64
	// left and users are of one round of share.
	left  float64
	users int
}

type flow struct {
	left, rate float64
	links      []*link
	done       func()
	settled    bool // in a round of share
}

// start begins a flow. done is called at its end, and may start others.
func (f *fluid) start(bytes uint64, done func(), links ...*link) {
	f.flows = append(f.flows, &flow{left: float64(bytes), links: links, done: done})
}

// run goes on until nothing flows.
func (f *fluid) run() {
	for len(f.flows) > 0 {
		f.share()
		step := math.Inf(1)
		for _, one := range f.flows {
			step = min(step, one.left/one.rate)
		}
		f.now += step
		var ended []*flow
		kept := f.flows[:0]
		for _, one := range f.flows {
			// What is left for a microsecond ends now, so that what is alike ends at once.
			if one.left -= one.rate * step; one.left <= one.rate*1e-6 {
				ended = append(ended, one)
			} else {
				kept = append(kept, one)
			}
		}
		clear(f.flows[len(kept):])
		f.flows = kept
		for _, one := range ended {
			one.done()
		}
	}
}

// share gives each flow its rate: again and again the link that can give its flows least gives them that, and what
// they have elsewhere is taken off there (Bertsekas and Gallager, "Data Networks", section 6.5.2).
func (f *fluid) share() {
	var links []*link
	for _, one := range f.flows {
		one.settled = false
		for _, l := range one.links {
			if l.users == 0 {
				l.left = l.capacity
				links = append(links, l)
			}
			l.users++
		}
	}
	for unsettled := len(f.flows); unsettled > 0; {
		least := math.Inf(1)
		for _, l := range links {
			if l.users > 0 {
				least = min(least, l.left/float64(l.users))
			}
		}
		// All links that are as narrow are done in one go.
		narrow := make(map[*link]bool)
		for _, l := range links {
			if l.users > 0 && l.left/float64(l.users) <= least*(1+1e-9) {
				narrow[l] = true
			}
		}
		for _, one := range f.flows {
			if one.settled || !one.crosses(narrow) {
				continue
			}
			one.settled, one.rate = true, least
			unsettled--
			for _, l := range one.links {
				l.left -= least
				l.users--
			}
		}
	}
}

func (one *flow) crosses(links map[*link]bool) bool {
	for _, l := range one.links {
		if links[l] {
			return true
		}
	}
	return false
}
