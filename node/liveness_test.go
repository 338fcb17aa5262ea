package node

import (
	"testing"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

func TestLiveness(t *testing.T) {
	const (
		alive       = atoll.Liveness_LIVENESS_UNSPECIFIED
		unreachable = atoll.Liveness_LIVENESS_UNREACHABLE
		down        = atoll.Liveness_LIVENESS_DOWN
		downAfter   = 5 * time.Minute
	)
	for _, test := range []struct {
		name string
		seen sighting
		want atoll.Liveness
	}{
		{"it answers", sighting{answered: true, recorded: alive, silence: time.Second}, alive},
		{"it is slow", sighting{answered: true, recorded: alive, silence: healthyFor - 1}, alive},
		{"it is silent", sighting{answered: true, recorded: alive, silence: healthyFor}, unreachable},
		{"it has never answered", sighting{recorded: alive, recordedFor: 20000 * time.Hour, silence: healthyFor}, unreachable},
		{"it said that it stops, and still answers", sighting{answered: true, recorded: alive, silence: time.Second, closing: true}, alive},
		{"it said that it stops, and has stopped", sighting{answered: true, recorded: alive, silence: promptFor, closing: true}, unreachable},
		{"it has stopped since", sighting{answered: true, recorded: unreachable, recordedFor: time.Second, silence: healthyFor - 1, closing: true}, unreachable},
		{"silence too long for one step", sighting{answered: true, recorded: alive, silence: 2 * downAfter}, unreachable},
		{"it may come back", sighting{answered: true, recorded: unreachable, recordedFor: downAfter - 1, silence: downAfter + healthyFor - 1}, unreachable},
		{"its time is over", sighting{answered: true, recorded: unreachable, recordedFor: downAfter, silence: downAfter + healthyFor}, down},
		{"the time goes on under a new leader", sighting{recorded: unreachable, recordedFor: downAfter, silence: downSilence}, down},
		{"a new leader listens first", sighting{recorded: unreachable, recordedFor: downAfter, silence: downSilence - 1}, unreachable},
		{"a process that has just started to lead", sighting{recorded: unreachable, recordedFor: downAfter}, unreachable},
		{"the same, of a node that is well", sighting{recorded: alive}, alive},
		{"the same, of a node that was down", sighting{recorded: down, silence: healthyFor - 1}, down},
		{"the old leader's clock was ahead", sighting{recorded: unreachable, recordedFor: -time.Hour, silence: downAfter + healthyFor - 1}, unreachable},
		{"own patience is enough then", sighting{recorded: unreachable, recordedFor: -time.Hour, silence: downAfter + healthyFor}, down},
		{"the old leader's clock was behind", sighting{recorded: unreachable, recordedFor: time.Hour, silence: downSilence - 1}, unreachable},
		{"the clock is set while it restarts", sighting{answered: true, recorded: unreachable, recordedFor: time.Hour, silence: downSilence + time.Second}, unreachable},
		{"the clock is set back meanwhile", sighting{answered: true, recorded: unreachable, recordedFor: -time.Hour, silence: downAfter + healthyFor}, down},
		{"this leader has recorded it, and never heard of it", sighting{recorded: unreachable, silence: downAfter + healthyFor - 1}, unreachable},
		{"and has waited for long enough", sighting{recorded: unreachable, silence: downAfter + healthyFor}, down},
		{"it comes back", sighting{answered: true, recorded: unreachable, recordedFor: time.Minute, silence: time.Second}, alive},
		{"it comes back after all", sighting{answered: true, recorded: down, recordedFor: time.Hour}, alive},
		{"it stays away", sighting{recorded: down, recordedFor: time.Hour, silence: healthyFor}, down},
	} {
		if got := test.seen.liveness(downAfter); got != test.want {
			t.Errorf("%s: %+v is %v, want %v", test.name, test.seen, got, test.want)
		}
	}
}
