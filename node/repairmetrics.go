package node

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
)

// repairMetrics tells monitoring what this node knows of the repair of the whole
// cluster, which the leader plans, and how far it is itself with its scrub.
type repairMetrics struct {
	repair func() (*Repair, error)
	scrub  func() blobstore.ScrubStatus
	log    zerolog.Logger

	queue, running, waiting, done, failed, bytes                                *prometheus.Desc
	scrubRunning, scrubShards, scrubBytes, scrubDamaged, scrubMissing, scrubEnd *prometheus.Desc
}

func newRepairMetrics(repair func() (*Repair, error), scrub func() blobstore.ScrubStatus, log zerolog.Logger) *repairMetrics {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("atoll_"+name, help, labels, nil)
	}
	return &repairMetrics{
		repair: repair, scrub: scrub, log: log,

		queue:   describe("repair_queue", "What is to be repaired: extents that miss shards (degraded), shards on nodes that are down, and on nodes that are drained (draining).", "kind"),
		running: describe("repair_running", "Extents that a node is working on.", "name"),
		waiting: describe("repair_waiting", "Extents that can't be repaired with the nodes that there are.", "reason"),
		done:    describe("repair_done_total", "Tasks of repair, drain and rebalance that were done since the leader leads."),
		failed:  describe("repair_failed_total", "Tasks that failed since the leader leads, to be tried again."),
		bytes:   describe("repair_bytes_total", "Bytes written by the tasks that were done."),

		scrubRunning: describe("scrub_running", "1 while this node reads its shards again."),
		scrubShards:  describe("scrub_pass_shards", "Shards that this node has read in the pass under way, or in the last one."),
		scrubBytes:   describe("scrub_pass_bytes", "Bytes of these shards."),
		scrubDamaged: describe("scrub_pass_damaged_shards", "Shards of that pass that were not what had been written."),
		scrubMissing: describe("scrub_pass_missing_shards", "Shards of that pass that were not there."),
		scrubEnd:     describe("scrub_last_end_timestamp_seconds", "When the last pass of this node ended, 0 if none has."),
	}
}

// Describe implements prometheus.Collector.
func (m *repairMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.queue, m.running, m.waiting, m.done, m.failed, m.bytes,
		m.scrubRunning, m.scrubShards, m.scrubBytes, m.scrubDamaged, m.scrubMissing, m.scrubEnd,
	} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector.
func (m *repairMetrics) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	if repair, err := m.repair(); err != nil {
		m.log.Warn().Err(err).Msg("no metrics of repair")
	} else {
		gauge(m.queue, float64(repair.DegradedExtents), "degraded")
		gauge(m.queue, float64(repair.DownShards), "down")
		gauge(m.queue, float64(repair.DrainingShards), "draining")
		if repair.Leader != "" {
			m.collectProgress(metrics, repair)
		}
	}
	scrub := m.scrub()
	gauge(m.scrubRunning, oneIf(scrub.Running))
	gauge(m.scrubShards, float64(scrub.Current.Shards))
	gauge(m.scrubBytes, float64(scrub.Current.Bytes))
	gauge(m.scrubDamaged, float64(scrub.Current.Damaged))
	gauge(m.scrubMissing, float64(scrub.Current.Missing))
	ended := 0.0
	if !scrub.Last.Ended.IsZero() {
		ended = float64(scrub.Last.Ended.Unix())
	}
	gauge(m.scrubEnd, ended)
}

// collectProgress tells what the leader says. Its counts begin anew with each leader,
// as those of a process do when it starts again.
func (m *repairMetrics) collectProgress(metrics chan<- prometheus.Metric, repair *Repair) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	send(m.done, prometheus.CounterValue, float64(repair.Done))
	send(m.failed, prometheus.CounterValue, float64(repair.Failed))
	send(m.bytes, prometheus.CounterValue, float64(repair.DoneBytes))
	for name, extents := range repair.Running {
		send(m.running, prometheus.GaugeValue, float64(extents), name)
	}
	for reason, extents := range repair.Waiting {
		send(m.waiting, prometheus.GaugeValue, float64(extents), reason)
	}
}
