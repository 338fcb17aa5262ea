package node

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// censusAge is how old the counts of blobs may be that a scrape is told, at least.
	censusAge = 15 * time.Second
	// censusShare bounds the part of the time that counting takes: with millions of
	// shards on a node that is down, one count takes seconds.
	censusShare = 20
	// censusTimeout bounds one count, so that a scrape gets the rest in any case.
	censusTimeout = 8 * time.Second
)

// clusterMetrics tells monitoring what this node knows of the cluster. Every node
// tells it of all nodes, so that one that is scraped is enough.
type clusterMetrics struct {
	members func() []*atoll.Node
	usage   func() (map[string]*atoll.ShardUsage, error)
	census  func(ctx context.Context) (BlobCounts, error)
	leads   func() bool
	// stats returns how a member was when it last answered; ok is false if it never did.
	stats     func(member *atoll.Node) (stats *atoll.HeartbeatResponse, ok bool)
	reachable func(nodeID string) bool
	log       zerolog.Logger

	mu     sync.Mutex // guards the counts; held while they are made
	counts BlobCounts
	until  time.Time // for which they will do
	known  bool

	// authority is that of the state.
	authority func() *atoll.ClusterAuthority

	certificate, authorityExpires                                                  *prometheus.Desc
	state, free, capacity, full, disk, diskFree, shards, shardBytes, blobs, leader *prometheus.Desc
}

// newClusterMetrics tells what p knows.
func newClusterMetrics(p *parts) *clusterMetrics {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("atoll_"+name, help, labels, nil)
	}
	return &clusterMetrics{
		authority:        p.machine.Authority,
		certificate:      describe("cluster_certificate_expiry_timestamp_seconds", "When the certificate of a node expires by which the other nodes know it.", "name"),
		authorityExpires: describe("cluster_authority_expiry_timestamp_seconds", "When the certificate authority of the cluster expires that signs the nodes' certificates."),

		members: p.members, usage: p.store.ShardUsage, leads: p.replica.IsLeader, reachable: p.peers.reachable, log: p.component("metrics"),
		census: func(ctx context.Context) (BlobCounts, error) { return countBlobs(ctx, p.store, p.peers) },
		stats: func(member *atoll.Node) (*atoll.HeartbeatResponse, bool) {
			if member.Id == p.self.Id {
				return p.heartbeat(), true
			}
			stats, _, ok := p.peers.answer(member.Id)
			return stats, ok
		},

		state:      describe("node_state", "1 for the state that a node is in, 0 for the others.", "name", "state"),
		free:       describe("node_free_bytes", "Room for new shards on a node, its reserve taken off.", "name"),
		capacity:   describe("node_capacity_bytes", "Bytes that a node offers for shards.", "name"),
		full:       describe("node_full", "1 if a node has no room for new shards: its disk has reached the reserve.", "name"),
		disk:       describe("disk_in_service", "1 if a disk is in service, 0 if its shards are being rebuilt.", "name", "folder"),
		diskFree:   describe("disk_free_bytes", "Room for new shards on a disk, its reserve taken off.", "name", "folder"),
		shards:     describe("node_shards", "Shards that a node holds according to the records.", "name"),
		shardBytes: describe("node_shard_bytes", "Bytes of these shards.", "name"),
		blobs:      describe("blobs", "Blobs that are whole, degraded, or lost: have too few shards on nodes that answer to be read.", "condition"),
		leader:     describe("leader", "1 if this node leads the cluster."),
	}
}

// Describe implements prometheus.Collector.
func (m *clusterMetrics) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.certificate, m.authorityExpires, m.state, m.free, m.capacity, m.full, m.disk, m.diskFree, m.shards, m.shardBytes, m.blobs, m.leader} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector.
func (m *clusterMetrics) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(m.leader, oneIf(m.leads()))
	if authority, err := parseAuthority(m.authority()); err == nil {
		gauge(m.authorityExpires, float64(authority.signer().NotAfter.Unix()))
	}
	usage, err := m.usage()
	if err != nil {
		m.log.Warn().Err(err).Msg("no metrics of what nodes hold")
	}
	for _, member := range m.members() {
		word := stateWord(member, m.reachable(member.Id))
		for _, state := range []string{stateActive, stateUnreachable, stateDown, stateDraining} {
			gauge(m.state, oneIf(state == word), member.Name, state)
		}
		if stats, ok := m.stats(member); ok {
			gauge(m.free, float64(stats.FreeBytes), member.Name)
			gauge(m.capacity, float64(stats.CapacityBytes), member.Name)
			gauge(m.full, oneIf(stats.FreeBytes == 0), member.Name)
			if stats.CertificateExpiresUnixMs > 0 {
				gauge(m.certificate, float64(stats.CertificateExpiresUnixMs)/1000, member.Name)
			}
			for _, disk := range stats.Disks {
				gauge(m.disk, oneIf(disk.Fault == ""), member.Name, disk.Folder)
				gauge(m.diskFree, float64(disk.FreeBytes), member.Name, disk.Folder)
			}
		}
		if err == nil {
			gauge(m.shards, float64(usage[member.Id].GetShards()), member.Name)
			gauge(m.shardBytes, float64(usage[member.Id].GetBytes()), member.Name)
		}
	}
	if counts, ok := m.countBlobs(); ok {
		gauge(m.blobs, float64(counts.Whole), "whole")
		gauge(m.blobs, float64(counts.Degraded), "degraded")
		gauge(m.blobs, float64(counts.Lost), "lost")
	}
}

// countBlobs counts, or returns a count that is not old. ok is false if there is none.
func (m *clusterMetrics) countBlobs() (counts BlobCounts, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	began := time.Now()
	if began.Before(m.until) {
		return m.counts, m.known
	}
	ctx, cancel := context.WithTimeout(context.Background(), censusTimeout)
	defer cancel()
	counts, err := m.census(ctx)
	if err != nil {
		m.log.Warn().Err(err).Msg("no metrics of blobs")
	}
	m.counts, m.known = counts, err == nil
	m.until = time.Now().Add(max(censusAge, censusShare*time.Since(began)))
	return m.counts, m.known
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}

// newExpiryMetric tells when the certificate that clients see expires, in time for
// somebody to ask why no new one has come.
func newExpiryMetric(notAfter func() time.Time) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "atoll_gateway_certificate_expiry_timestamp_seconds",
		Help: "When the certificate in use on the registry port expires, Unix time; 0 if there is none yet.",
	}, func() float64 {
		expiry := notAfter()
		if expiry.IsZero() {
			return 0
		}
		return float64(expiry.Unix())
	})
}
