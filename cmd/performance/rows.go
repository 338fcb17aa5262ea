package main

import "github.com/atollregistry/atoll/cmd/bench"

const (
	kib = 1 << 10
	mib = 1 << 20
	// layerBytes is the size of the layer that a herd pulls: a large image's.
	layerBytes = 200e6
	// turnBytes is how much a turn pushes at most, so that the disk has room for it.
	turnBytes = 4 << 30
	// manyTags is how many tags a busy repository of a build system may have, fewTags what most have.
	manyTags = 100_000
	fewTags  = 100
	// maxNodeBytes is how much memory a node may have in any row.
	maxNodeBytes = 150 * mib
)

// rows is the table.
func rows() []row {
	return []row{
		push("push-3", "push blobs of 64 MiB, 4 clients, three nodes", 3, aims{least: 1, cpuPerGB: 3.5}),
		push("push-1", "push blobs of 64 MiB, 4 clients, one node", 1, aims{least: 1.5}),
		push("push-5", "push blobs of 64 MiB, 4 clients, five nodes", 5, aims{}),
		{
			name: "push-chunked", what: "push blobs of 64 MiB in chunks of 8 MiB, 4 clients, three nodes",
			nodes: 3, against: dockerRegistry, between: empty, by: bench.BytesPerSecond,
			load: bench.Config{Workload: "push-chunked", Size: 64 * mib, Chunk: 8 * mib, Clients: 4, Count: turnBytes / (64 * mib)},
		},
		{
			name: "push-small", what: "push blobs of 64 KiB, 4 clients, three nodes",
			nodes: 3, against: dockerRegistry, between: empty, by: bench.OperationsPerSecond,
			load: bench.Config{Workload: "push-stream", Size: 64 * kib, Clients: 4, Count: turnBytes / (64 * kib)},
		},
		pullHot("pull-hot-3", "pull hot blobs of 64 MiB, 4 clients, three nodes", 3),
		pullHot("pull-hot-1", "pull hot blobs of 64 MiB, 4 clients, one node", 1),
		pullHot("pull-hot-5", "pull hot blobs of 64 MiB, 4 clients, five nodes", 5),
		pullCold("pull-cold", "pull cold blobs of 64 MiB, 4 clients, three nodes", false, aims{least: 0.5, cpuPerGB: 1.3}),
		pullCold("pull-dead", "pull cold blobs of 64 MiB, 4 clients, three nodes of which one is dead", true, aims{least: 0.35}),
		{
			name: "pull-range", what: "pull ranges of 1 MiB of blobs of 64 MiB, 4 clients, three nodes",
			nodes: 3, against: nginx, by: bench.BytesPerSecond,
			load: bench.Config{Workload: "pull-range", Size: 64 * mib, Chunk: mib, Clients: 4, Blobs: 8},
		},
		tags("head-tag", "HEAD a manifest by tag, linearizable, 16 clients, three nodes", fewTags, aims{least: 6}),
		tags("head-tag-100k", "HEAD a manifest by tag, linearizable, 16 clients, three nodes, 100,000 tags (docker-registry has 100)", manyTags, aims{least: 6}),
		tags("get-tag", "GET a manifest by tag, linearizable, 16 clients, three nodes", fewTags, aims{}),
		tags("put-tag", "PUT a manifest by tag, durable, 16 clients, three nodes", fewTags, aims{least: 4}),
		tags("list-tags", "list 100 tags, linearizable, 16 clients, three nodes", fewTags, aims{}),
		{
			name: "image", what: "push small images (3 blobs of 16 KiB, a config and a manifest), 8 clients, three nodes",
			nodes: 3, against: dockerRegistry, between: empty, by: bench.OperationsPerSecond, aims: aims{least: 3},
			load: bench.Config{Workload: "image", Size: mib, Clients: 8},
		},
		{
			name: "herd", what: "300 clients pull one layer of 200 MB at once, three nodes, cold",
			nodes: 3, against: nginx, between: cool, by: bench.MaxSeconds, aims: aims{most: 1.3, reads: 1},
			load: bench.Config{Workload: "pull-herd", Size: layerBytes, Clients: 300, Blobs: 1, Cold: true},
		},
	}
}

func push(name, what string, nodes int, wanted aims) row {
	return row{
		name: name, what: what, nodes: nodes, against: dockerRegistry, between: empty, by: bench.BytesPerSecond, aims: wanted,
		load: bench.Config{Workload: "push-stream", Size: 64 * mib, Clients: 4, Count: turnBytes / (64 * mib)},
	}
}

func pullHot(name, what string, nodes int) row {
	return row{
		name: name, what: what, nodes: nodes, against: nginx, by: bench.BytesPerSecond, aims: aims{least: 0.95, cpuPerGB: 0.5},
		load: bench.Config{Workload: "pull", Size: 64 * mib, Clients: 4, Blobs: 8},
	}
}

func pullCold(name, what string, dead bool, wanted aims) row {
	return row{
		name: name, what: what, nodes: 3, dead: dead, against: nginx, between: cool, by: bench.BytesPerSecond, aims: wanted,
		load: bench.Config{Workload: "pull", Size: 64 * mib, Clients: 4, Blobs: 16, Cold: true},
	}
}

// tags has a workload with the row's name, unless the row is one of many tags.
func tags(name, what string, number int, wanted aims) row {
	r := row{
		name: name, what: what, nodes: 3, against: dockerRegistry, by: bench.OperationsPerSecond, aims: wanted,
		load: bench.Config{Workload: name, Size: mib, Clients: 16, Tags: number},
	}
	if number == manyTags {
		r.load.Workload, r.referenceTags = "head-tag", fewTags
	}
	return r
}
