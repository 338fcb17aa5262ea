package node

import (
	"net/http"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
)

// Seams lets tests put something between the parts of a node. Each function gets
// a part and returns what the others shall see in its place; nil leaves it as it
// is.
type Seams struct {
	// Log takes the commands that this node proposes.
	Log func(metadata.Log) metadata.Log
	// Machine applies the commands that were committed.
	Machine func(consensus.StateMachine) consensus.StateMachine
	// Catalog is what the blob store sees of the records.
	Catalog func(blobstore.Catalog) blobstore.Catalog
	// Handler answers clients.
	Handler func(http.Handler) http.Handler
}

// WithSeams puts something between the parts of a node.
func WithSeams(seams Seams) Option { return func(n *Node) { n.seams = seams } }

// through returns what a seam makes of a part.
func through[T any](seam func(T) T, part T) T {
	if seam == nil {
		return part
	}
	return seam(part)
}
