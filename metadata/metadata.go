// Package metadata keeps what a cluster knows of its content: repositories,
// tags, manifests, blobs with the placement of their shards, uploads and nodes.
//
// Machine is the replicated state machine. Its state lives in a bbolt database
// on every node and changes only by the commands that consensus hands to Apply,
// in the same order everywhere; the same commands make the same state. Store is
// the typed face: it proposes writes, and answers reads that have seen every
// write acknowledged before them on any node.
//
// DESIGN.md has the buckets and keys, the invariants, the rules for commands,
// and what happens at each point of a crash.
package metadata

// MaxInlineManifest is how large a manifest may be, in bytes, to be kept in its
// record. A larger one would delay the log, with it heartbeats, and is stored
// as a blob.
const MaxInlineManifest = 128 << 10
