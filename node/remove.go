package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// groupTimeout bounds how long the answer waits for the Raft group to be without
	// the removed node.
	groupTimeout = 10 * time.Second
	// groupPoll is the pause between two looks at that.
	groupPoll = 100 * time.Millisecond
)

// Removal is what came of the request to remove a node.
type Removal struct {
	// Node is the node's name.
	Node string `json:"node"`
	// Removed says that it is a member no more, for good; Refusal why it still is.
	Removed bool   `json:"removed"`
	Refusal string `json:"refusal,omitempty"`
	// Blobs and Uploads are how many blobs and uploads in progress can't be read
	// without the node, or could not, and Lost the first of the blobs.
	Blobs   uint64     `json:"blobs"`
	Uploads uint64     `json:"uploads"`
	Lost    []LostBlob `json:"lost,omitempty"`
}

// LostBlob is a blob that is lost with a node.
type LostBlob struct {
	Digest string `json:"digest"`
	// Bytes is its size.
	Bytes uint64 `json:"bytes"`
	// Repositories have the blob, the first ten of them.
	Repositories []string `json:"repositories"`
}

// Remove takes a node out of the cluster for good, through the node whose data folder
// is given. Unless forced it gives nothing up.
func Remove(ctx context.Context, dataDir, name string, force bool) (*Removal, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTimeout)
	defer cancel()
	query := url.Values{"node": {name}}
	if force {
		query.Set("force", "true")
	}
	removal := &Removal{}
	return removal, askAdmin(ctx, dataDir, http.MethodPost, "/remove?"+query.Encode(), removal)
}

func (a *admin) serveRemove(w http.ResponseWriter, r *http.Request) {
	force, err := flagOf(r, "force")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.URL.Query().Get("node")
	removal, err := a.remove(r.Context(), name, force)
	// Not checkAudit: a node that is to be shut out can't wait for a full disk.
	a.auditAdmin(r, "node remove", name, fmt.Sprintf("force %v", force), err)
	answerAdmin(w, removal, err)
}

func (a *admin) remove(ctx context.Context, name string, force bool) (*Removal, error) {
	member, err := a.find(ctx, name)
	if err != nil {
		return nil, err
	}
	c, err := a.removalCase(member)
	if err != nil {
		return nil, err
	}
	removal := &Removal{Node: name, Refusal: c.refusal(force)}
	if removal.Refusal != "" {
		return removal, nil
	}
	if err := a.listLosses(ctx, member.Id, removal); err != nil {
		return nil, err
	}
	if removal.Blobs+removal.Uploads > 0 && !force {
		removal.Refusal = fmt.Sprintf("what only node %s has would be lost: start it again with its data; or give that up with --force", name)
		return removal, nil
	}
	if c.shards == 0 {
		err = a.store.RemoveEmptyNode(ctx, member.Id)
	} else {
		err = a.store.SetNodeState(ctx, member.Id, atoll.NodeState_NODE_STATE_REMOVED)
	}
	if errors.Is(err, metadata.ErrNodeNotEmpty) {
		removal.Refusal = fmt.Sprintf("node %s has got shards meanwhile: drain it first", name)
		return removal, nil
	}
	if err != nil {
		return nil, err
	}
	removal.Removed = true
	return removal, a.awaitGroup(ctx, member.Id)
}

// awaitGroup waits until the leader has taken a removed node out of the Raft group.
// This node itself answers first, since it ends then.
func (a *admin) awaitGroup(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	for id != a.self.Id && isMember(a.replica, id) {
		if err := pause(ctx, groupPoll); err != nil {
			return fmt.Errorf("the node is removed, but not yet out of the Raft group; the leader goes on trying: %w", err)
		}
	}
	return nil
}

// listLosses completes the removal with what would be lost, given that nodes which
// don't answer now are gone as well.
func (a *admin) listLosses(ctx context.Context, id string, removal *Removal) error {
	losses, err := a.store.Losses(ctx, id, func(other string) bool { return !a.peers.reachable(other) })
	if err != nil {
		return err
	}
	removal.Blobs, removal.Uploads = losses.Blobs, losses.Uploads
	for _, blob := range losses.First {
		removal.Lost = append(removal.Lost, LostBlob{Digest: blob.Digest, Bytes: blob.Size, Repositories: blob.Repositories})
	}
	return nil
}

// removalCase is what decides whether a node may be removed, apart from what would
// be lost.
type removalCase struct {
	name string
	// alive says that the leader or this node hears of it.
	alive bool
	// draining and shards are what the records say of it.
	draining bool
	shards   uint64
	// voters are the other nodes that vote, answering those of them that answer.
	voters, answering int
}

// removalCase gathers what is known of a member.
func (a *admin) removalCase(member *atoll.Node) (removalCase, error) {
	usage, err := a.store.ShardUsage()
	if err != nil {
		return removalCase{}, fmt.Errorf("ask what node %s holds: %w", member.Name, err)
	}
	c := removalCase{
		name: member.Name, draining: member.State == atoll.NodeState_NODE_STATE_DRAINING, shards: usage[member.Id].GetShards(),
		alive: a.peers.reachable(member.Id) || member.Liveness == atoll.Liveness_LIVENESS_UNSPECIFIED,
	}
	for _, other := range a.replica.Status().Members {
		if !other.Voter || other.ID == member.Id {
			continue
		}
		c.voters++
		if a.peers.reachable(other.ID) {
			c.answering++
		}
	}
	return c, nil
}

// refusal says why the node may not be removed; empty if it may.
func (c removalCase) refusal(force bool) string {
	switch {
	case c.voters == 0:
		return fmt.Sprintf("node %s is the only one that votes: nothing would be left of the cluster", c.name)
	case c.answering <= c.voters/2:
		return fmt.Sprintf("of the %d other voters only %d answer, so that the cluster would have no quorum without node %s: start them again, or remove those first that are gone for good",
			c.voters, c.answering, c.name)
	case c.alive && c.shards > 0 && c.draining && !force:
		return fmt.Sprintf("node %s is alive and still holds %d shards: 'atoll drain %s --wait' tells when it is empty", c.name, c.shards, c.name)
	case c.alive && c.shards > 0 && !force:
		return fmt.Sprintf("node %s is alive and holds %d shards: run 'atoll drain %s --wait' first", c.name, c.shards, c.name)
	}
	return ""
}
