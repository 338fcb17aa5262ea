package node

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
)

// gathered returns what a collector tells, by name and the value of the one label
// that there is.
func gathered(t *testing.T, collector prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			key := family.GetName()
			for _, label := range metric.GetLabel() {
				key += " " + label.GetValue()
			}
			values[key] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	return values
}

func TestRepairMetrics(t *testing.T) {
	repair, failure := &Repair{DegradedExtents: 1, DownShards: 2, DrainingShards: 3}, error(nil)
	scrub := blobstore.ScrubStatus{
		Running: true, Current: blobstore.ScrubPass{Shards: 10, Bytes: 20, Damaged: 30, Missing: 40}, Last: blobstore.ScrubPass{Ended: time.Unix(50, 0)},
	}
	m := newRepairMetrics(func() (*Repair, error) { return repair, failure }, func() blobstore.ScrubStatus { return scrub }, zerolog.Nop())
	ofScrub := map[string]float64{
		"atoll_scrub_running": 1, "atoll_scrub_pass_shards": 10, "atoll_scrub_pass_bytes": 20, "atoll_scrub_pass_damaged_shards": 30,
		"atoll_scrub_pass_missing_shards": 40, "atoll_scrub_last_end_timestamp_seconds": 50,
	}
	ofQueue := map[string]float64{"atoll_repair_queue degraded": 1, "atoll_repair_queue down": 2, "atoll_repair_queue draining": 3}
	ofLeader := map[string]float64{
		"atoll_repair_done_total": 4, "atoll_repair_failed_total": 5, "atoll_repair_bytes_total": 6,
		"atoll_repair_running n1": 7, "atoll_repair_waiting no room": 8,
	}
	check := func(name string, parts ...map[string]float64) {
		t.Helper()
		want := make(map[string]float64)
		for _, part := range parts {
			maps.Copy(want, part)
		}
		if got := gathered(t, m); !maps.Equal(got, want) {
			t.Errorf("%s: metrics are %v, want %v", name, got, want)
		}
	}
	check("no leader", ofQueue, ofScrub)
	repair.Leader, repair.Done, repair.Failed, repair.DoneBytes = "n1", 4, 5, 6
	repair.Running, repair.Waiting = map[string]uint32{"n1": 7}, map[string]uint32{"no room": 8}
	check("with a leader", ofQueue, ofLeader, ofScrub)
	failure = errors.New("test")
	check("without records", ofScrub)
}
