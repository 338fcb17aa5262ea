package mutant

// Tuning makes times and sizes so small that a run of two minutes goes through what else
// takes hours, or weeks of traffic. None of them is a promise to clients, and no
// operator should have them. All nodes of a cluster need the same ones: requestWindow is
// part of how commands are applied, and states would differ without it.
func Tuning() []Patch {
	set := func(file, old, tuned string) Patch { return Patch{File: file, Old: old, New: tuned} }
	const blobs, raft = "blobstore/config.go", "consensus/config.go"
	return []Patch{
		// What no record names goes within the run, at the risk that the sweep takes what a
		// record is about to name. An era is half of the grace.
		set(blobs, "SweepInterval:      10 * time.Minute,", "SweepInterval:      3 * time.Second,"),
		set(blobs, "SweepGrace:         time.Hour,", "SweepGrace:         20 * time.Second,"),
		// A disk is found to have failed, and is taken out of service, while its fault lasts.
		set(blobs, "DiskProbeInterval:   10 * time.Second,", "DiskProbeInterval:   2 * time.Second,"),
		set(blobs, "DiskGrace:           time.Minute,", "DiskGrace:           10 * time.Second,"),
		// Blobs of some MiB have several extents, with records on the way.
		set(blobs, "MaxExtentBytes:      1 << 30,", "MaxExtentBytes:      2 << 20,"),
		// Shards move between small disks, too, for balance.
		set(blobs, "RebalanceThreshold: 0.05,", "RebalanceThreshold: 0.01,"),
		set(blobs, "RebalanceMinBytes:  1 << 30,", "RebalanceMinBytes:  8 << 20,"),
		set("blobstore/rebalance.go", "improveRest = 20 * time.Second", "improveRest = 3 * time.Second"),
		// What could not be repaired during a fault is repaired soon after it.
		set("blobstore/repairer.go", "nodeRest = 10 * time.Second", "nodeRest = 2 * time.Second"),
		set("blobstore/repairer.go", "extentRestMin, extentRestMax = 2 * time.Second, 5 * time.Minute",
			"extentRestMin, extentRestMax = time.Second, 5 * time.Second"),
		set("blobstore/disk.go", "diskRest = 30 * time.Second", "diskRest = 5 * time.Second"),
		set("blobstore/scrub.go", "scrubPause = time.Minute", "scrubPause = 2 * time.Second"),
		// While a disk is out of service, shards that are gone are looked for.
		set("blobstore/blobstore.go", "lostDiskInterval = time.Hour", "lostDiskInterval = 5 * time.Second"),

		// The log is cut all the time, and a node that was away for some seconds gets a
		// snapshot.
		set(raft, "SnapshotInterval:  time.Second,", "SnapshotInterval:  3 * time.Second,"),
		set(raft, "SnapshotThreshold: 4096,", "SnapshotThreshold: 500,"),
		set(raft, "TrailingLogs:      4096,", "TrailingLogs:      200,"),
		// Votes go to new nodes, and from dead ones, within the run.
		set(raft, "StabilizationTime: 10 * time.Second,", "StabilizationTime: 3 * time.Second,"),
		set(raft, "ReplaceVoterAfter: 60 * time.Second,", "ReplaceVoterAfter: 20 * time.Second,"),
		set("node/membership.go", "const replaceAfter = 30 * time.Second", "const replaceAfter = 10 * time.Second"),

		// Nodes compare their states often: two comparisons are needed to see a difference.
		set("node/leader.go", "checkpointInterval = 30 * time.Second", "checkpointInterval = 3 * time.Second"),
		// Connections between nodes give way to new ones under load.
		set("node/grpc.go", "connectionAge   = 10 * time.Minute", "connectionAge   = 15 * time.Second"),
		// Answers to commands are forgotten within the run, and commands refused that come
		// later. It is still more than is written in the time that a command is retried for.
		set("metadata/request.go", "requestWindow = 1 << 17", "requestWindow = 1 << 12"),
	}
}
