package main

import (
	"time"

	"github.com/atollregistry/atoll/cmd/bench"
)

// row is one line of the table: a workload that atoll and a reference do in turns.
type row struct {
	// name is what --only and the reports call it; what tells people.
	name, what string
	// nodes is how many atoll has, and dead says that the last of them is killed once blobs are there.
	nodes int
	dead  bool
	// against is what atoll is compared with.
	against server
	// load is the workload, with what it goes by. The run adds servers, turns and times.
	load bench.Config
	// referenceTags is how many tags the reference has, if fewer than load.Tags; otherwise 0.
	referenceTags int
	// between is what is done with a server before each of its turns.
	between between
	// by is what the two are compared by.
	by bench.Metric
	// aims are what is wanted; a row without any is only told.
	aims aims
}

// aims are what is wanted of a row. Those that are 0 don't count.
type aims struct {
	// least and most are bounds of how many times as much atoll has as the reference.
	least, most float64
	// cpuPerGB bounds what all nodes together take, in CPU seconds a GB.
	cpuPerGB float64
	// reads bounds how often a node reads a blob's shards in a turn.
	reads float64
}

// server is the name of a kind of server, in reports as well.
type server string

const (
	atoll          server = "atoll"
	dockerRegistry server = "docker-registry"
	nginx          server = "nginx"
)

// between is what is done with a server before each of its turns.
type between int

const (
	// settle has the disk at rest: what turns before have written is on it.
	settle between = iota
	// cool empties all caches: the nodes' own, and the page cache of all data.
	cool
	// empty starts anew without data, so that the disk does not fill up.
	empty
)

const (
	// warmUp is how long operations run before each turn that don't count.
	warmUp = time.Second
	// operationTimeout is how long one operation may take.
	operationTimeout = 10 * time.Minute
	// prepareTimeout and turnMargin bound what a row takes besides the time of its turns: to start,
	// to push what is read and to stop; and to come to rest or start anew before a turn, and to end
	// what has begun in it.
	prepareTimeout = 20 * time.Minute
	turnMargin     = 10 * time.Minute
)

// limit is how long the row may take until it has failed.
func (r *row) limit(o *options) time.Duration {
	return prepareTimeout + time.Duration(2*o.turns)*(o.duration+warmUp+turnMargin)
}
