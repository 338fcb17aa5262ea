package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/atollregistry/atoll/blobstore"
)

// cacheMetrics tells monitoring of the blobs that this node keeps whole.
type cacheMetrics struct {
	cache func() (blobstore.CacheStatus, bool)

	blobs, bytes, limit, reads, fills, evicted, rotten *prometheus.Desc
}

func newCacheMetrics(cache func() (blobstore.CacheStatus, bool)) *cacheMetrics {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("atoll_cache_"+name, help, labels, nil)
	}
	return &cacheMetrics{
		cache:   cache,
		blobs:   describe("blobs", "Blobs that this node keeps whole beside its shards, or that are just coming in."),
		bytes:   describe("bytes", "Bytes of these blobs."),
		limit:   describe("limit_bytes", "Bytes that they may have now: less as the disk fills up."),
		reads:   describe("reads_total", "Reads by clients of blobs that were there (hit), just coming in (join), or neither (miss).", "result"),
		fills:   describe("fills_total", "Blobs that came in and stayed (done), or went again since one reader alone wanted them (passed), since that one went away (abandoned), or for another reason (failed).", "result"),
		evicted: describe("evicted_total", "Blobs that gave way to others, or to shards."),
		rotten:  describe("rotten_total", "Blobs that were dropped since they were not any more what they had been."),
	}
}

// Describe implements prometheus.Collector.
func (m *cacheMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.blobs, m.bytes, m.limit, m.reads, m.fills, m.evicted, m.rotten} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector.
func (m *cacheMetrics) Collect(metrics chan<- prometheus.Metric) {
	s, ok := m.cache()
	if !ok {
		return
	}
	gauge := func(d *prometheus.Desc, value uint64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value))
	}
	count := func(d *prometheus.Desc, value uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}
	gauge(m.blobs, s.Blobs)
	gauge(m.bytes, s.Bytes)
	gauge(m.limit, s.LimitBytes)
	count(m.reads, s.Hits, "hit")
	count(m.reads, s.Joins, "join")
	count(m.reads, s.Misses, "miss")
	count(m.fills, s.Fills, "done")
	count(m.fills, s.Passed, "passed")
	count(m.fills, s.Abandoned, "abandoned")
	count(m.fills, s.Failed, "failed")
	count(m.evicted, s.Evicted)
	count(m.rotten, s.Rotten)
}
