package node

import (
	"slices"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/gateway"
	atoll "github.com/atollregistry/atoll/proto"
)

// homes tells the gateway where blobs are best read.
type homes struct {
	peers   *peers
	members func() []*atoll.Node
	// serves tells whether clients that are sent to another node are served there.
	serves func(member *atoll.Node) bool
	// atHand tells whether this node needs no other to read a blob.
	atHand func(digest string, extents []*atoll.Extent) bool
	// keeps tells whether this node could keep a blob whole.
	keeps func(extents []*atoll.Extent) bool
}

// Home implements gateway.Homes. A holder that clients can't reach, or that might
// be dead, is nobody's home, unless it is this node, which they have reached.
func (h homes) Home(digest string, extents []*atoll.Extent) gateway.Home {
	self := h.peers.Self()
	urls := map[string]string{}
	for _, member := range h.members() {
		if member.Id != self && member.RedirectUrl != "" && h.serves(member) {
			urls[member.Id] = member.RedirectUrl
		}
	}
	nodes := slices.DeleteFunc(h.peers.Nodes(), func(n blobstore.NodeInfo) bool { return n.ID != self && urls[n.ID] == "" })
	id := blobstore.Home(nodes, digest, extents, self)
	return gateway.Home{URL: urls[id], Self: id == self, AtHand: h.atHand(digest, extents), Keeps: h.keeps(extents)}
}
