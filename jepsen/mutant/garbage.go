package mutant

// brokenGarbage are mutants that delete what is in use, or nothing at all.
func brokenGarbage() []Mutant {
	return []Mutant{{
		Name:   "reference-flag",
		Breaks: "it is known whether a manifest refers to a blob, and not which ones do",
		Patches: []Patch{
			{File: "metadata/reference.go",
				Old: "c.putValue(bucketBlobReferences, keyOf(repository, blob, digest), nil)",
				New: "c.putValue(bucketBlobReferences, keyOf(repository, blob, blob), nil)"},
			{File: "metadata/reference.go",
				Old: "c.remove(bucketBlobReferences, keyOf(repository, blob, digest))",
				New: "c.remove(bucketBlobReferences, keyOf(repository, blob, blob))"},
		},
		Workloads: []string{"collect"},
		Nemesis:   "none",
		Catches: "dangling: of two images of a repository that share a layer one is deleted, and a grace later the layer is; " +
			"the cluster stops if the other is deleted after that",
	}, {
		Name:   "collect-no-grace",
		Breaks: "blobs that no manifest refers to go at the next collection",
		Patches: []Patch{{File: "metadata/expire.go",
			Old: "BlobsBeforeUnixMs:    now.Add(-s.cfg.BlobGrace).UnixMilli(),", New: "BlobsBeforeUnixMs:    now.UnixMilli(),"}},
		Workloads: []string{"collect", "images"},
		Nemesis:   "none",
		Catches:   "refused: the manifest of an image whose layers were pushed or found a moment before; lost, for blobs without a manifest",
	}, {
		Name:   "clock-backwards",
		Breaks: "what a node with a slow clock pushes is as old as its clock says",
		Patches: []Patch{{File: "metadata/clock.go",
			Old: "if c.now = max(unixMS, clock); c.now == clock {", New: "if c.now = unixMS; c.now <= clock {"}},
		Workloads: []string{"collect"},
		Nemesis:   "clock",
		Catches:   "refused: blobs through a node whose clock is behind by more than the grace are collected before their manifest comes",
	}, {
		Name:   "sweep-at-once",
		Breaks: "the sweep deletes what it finds without a record, without waiting for one",
		Patches: []Patch{{File: "blobstore/sweep.go",
			Old: "\t\tid := shard.shardID\n",
			New: "\t\tid := shard.shardID\n\t\tif s.disk.remove(id) == nil {\n\t\t\tremoved++\n\t\t\tcontinue\n\t\t}\n"}},
		Workloads: []string{"images", "uploads"},
		Nemesis:   "latency",
		Catches:   "records without shards: those that were swept between their name and their record; lost, after a pause of the node that records them",
	}, {
		Name:   "moved-shards-kept",
		Breaks: "a shard that has moved to another node counts as in use where it was",
		Patches: []Patch{{File: "metadata/extent.go",
			Old: `live[i] = number < len(holders) && holders[number] == shard.GetNodeId() && shard.GetNodeId() != ""`,
			New: `live[i] = number < len(holders) && holders[number] != "" && shard.GetNodeId() != ""`}},
		Workloads: []string{"images"},
		Nemesis:   "drain",
		Catches:   "leaked shards; also after a node was away for longer than down-after",
	}}
}
