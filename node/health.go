package node

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

// judge sets the health, the problems, the worst first, and the notes. writes says
// why this node can't serve tags and pushes; nil if it can.
func (s *Status) judge(writes error, downAfter time.Duration) {
	s.Health = HealthOK
	worsen := func(health Health, format string, args ...any) {
		if s.Health == HealthOK {
			s.Health = health
		}
		s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
	}
	if s.Blobs.Lost > 0 {
		worsen(HealthLosing, "%d blobs can't be read now, %s", s.Blobs.Lost, s.remedy())
	}
	switch {
	case errors.Is(writes, errNoMajority):
		worsen(HealthReadOnly, "this node can't serve tags or pushes: %v: see that most of the voters run, and that they reach each other", writes)
	case writes != nil:
		worsen(HealthReadOnly, "this node can't serve tags or pushes: %v", writes)
	}
	for _, node := range s.Nodes {
		switch node.State {
		case stateUnreachable:
			worsen(HealthDegraded, "node %s does not answer, %s: start it again; its shards are rebuilt on others once it has been away for %s", node.ID, node.seen(), downAfter)
		case stateDown:
			rebuilt := "its shards are being rebuilt on others"
			if node.Shards == 0 {
				rebuilt = "all its shards are on others by now"
			}
			worsen(HealthDegraded, "node %s is down, %s: %s; start it again, or a new one in its place on an empty data folder, or run 'atoll remove %s'",
				node.ID, node.seen(), rebuilt, node.ID)
		}
	}
	for _, node := range s.Nodes {
		for _, disk := range node.Disks {
			if disk.Fault != "" {
				worsen(HealthDegraded, "disk %s of node %s is out of service, and its shards are being rebuilt: %s; replace it and start the node again", disk.Folder, node.ID, disk.Fault)
			}
		}
		if node.isFull() {
			worsen(HealthDegraded, "node %s takes no new shards, since its disk has no room left above the reserve: add nodes or space, or delete images and run 'atoll gc'", node.ID)
		}
	}
	if s.Blobs.Degraded > 0 {
		worsen(HealthDegraded, "%d blobs have fewer shards than they should: 'atoll repair' shows what is done about it", s.Blobs.Degraded)
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Waiting)) {
		worsen(HealthDegraded, "%d extents can't be repaired or moved, %s: add nodes or space, or end a drain with 'atoll drain --cancel'", s.Waiting[reason], reason)
	}
	for _, node := range s.Nodes {
		if node.certificateLate {
			worsen(HealthDegraded, "the certificate of node %s expires on %s and was not renewed: its log says why", node.ID, node.CertificateExpires.Format(time.DateTime))
		}
	}
	for _, node := range s.Nodes {
		if node.Draining {
			s.Notes = append(s.Notes, node.drainNote())
		}
	}
}

// noteCertificates adds when the nodes' certificates expire.
func (s *Status) noteCertificates(holdings []holding) {
	for _, h := range holdings {
		at := slices.IndexFunc(s.Nodes, func(n NodeStatus) bool { return n.ID == h.name })
		if at < 0 || !h.known {
			continue
		}
		s.Nodes[at].CertificateExpires = &h.expires
		s.Nodes[at].certificateLate = time.Until(h.expires) < h.expires.Sub(h.issued)/selfRenewalShare
	}
}

// noteRecovery adds what is to be known of nodes that are away after a recovery.
func (s *Status) noteRecovery(recoveries []*atoll.Recovery) {
	if len(recoveries) == 0 || !slices.ContainsFunc(s.Nodes, NodeStatus.isAway) {
		return
	}
	last := recoveries[len(recoveries)-1]
	s.Notes = append(s.Notes, fmt.Sprintf("the cluster was recovered on %s: a node that has not been back since then needs 'atoll recover --rejoin' before it is started",
		time.UnixMilli(last.RecoveredUnixMs).Format(time.DateTime)))
}

// remedy says what gets blobs back that can't be read.
func (s *Status) remedy() string {
	for _, node := range s.Nodes {
		if node.isAway() {
			return "since nodes that hold their shards don't answer: start those again with their data"
		}
	}
	return "though all nodes answer: their shards are gone, push them again or restore them from a backup"
}

// isAway says that the node does not answer.
func (n NodeStatus) isAway() bool { return n.State == stateUnreachable || n.State == stateDown }

// isFull says that a node which answers and could take new shards has no room.
func (n NodeStatus) isFull() bool {
	return n.State == stateActive && n.LastContactMS >= 0 && n.FreeBytes == 0
}

// seen says when the node last answered.
func (n NodeStatus) seen() string {
	if n.LastContactMS < 0 {
		return "never seen since the node that was asked has started"
	}
	return "last seen " + (time.Duration(n.LastContactMS) * time.Millisecond).Round(time.Second).String() + " ago"
}

// drainNote says how far a drain is.
func (n NodeStatus) drainNote() string {
	if n.Shards == 0 {
		return fmt.Sprintf("node %s is empty: 'atoll remove %s' takes it out of the cluster", n.ID, n.ID)
	}
	return fmt.Sprintf("node %s is draining: %d shards, %d bytes are still there", n.ID, n.Shards, n.ShardBytes)
}
