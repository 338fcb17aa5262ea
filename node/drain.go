package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// operateTimeout bounds a request of an operator that looks at all that one node
// holds and then changes something.
const operateTimeout = 2 * time.Minute

// drainTries is how often a drain is planned when nodes come and go meanwhile.
const drainTries = 5

// Drain is how far a node is with being emptied.
type Drain struct {
	// Node is the node's name.
	Node string `json:"node"`
	// Draining says that it gives its shards away and takes no new ones.
	Draining bool `json:"draining"`
	// Shards and Bytes are what it holds still.
	Shards uint64 `json:"shards"`
	Bytes  uint64 `json:"bytes"`
}

// StartDrain has a node emptied, through the node whose data folder is given. It
// fails if the other nodes could not take what it holds.
func StartDrain(ctx context.Context, dataDir, name string) (*Drain, error) {
	return askDrain(ctx, dataDir, http.MethodPost, url.Values{"node": {name}})
}

// CancelDrain has a node take shards again.
func CancelDrain(ctx context.Context, dataDir, name string) (*Drain, error) {
	return askDrain(ctx, dataDir, http.MethodPost, url.Values{"node": {name}, "cancel": {"true"}})
}

// FetchDrain tells how far a drain is.
func FetchDrain(ctx context.Context, dataDir, name string) (*Drain, error) {
	return askDrain(ctx, dataDir, http.MethodGet, url.Values{"node": {name}})
}

func askDrain(ctx context.Context, dataDir, method string, query url.Values) (*Drain, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTimeout)
	defer cancel()
	drain := &Drain{}
	return drain, askAdmin(ctx, dataDir, method, "/drain?"+query.Encode(), drain)
}

func (a *admin) serveDrain(w http.ResponseWriter, r *http.Request) {
	cancel, err := flagOf(r, "cancel")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name := r.URL.Query().Get("node")
	switch {
	case r.Method == http.MethodPost && cancel:
		err = a.cancelDrain(r.Context(), name)
	case r.Method == http.MethodPost:
		err = a.startDrain(r.Context(), name)
	}
	var drain *Drain
	if err == nil {
		drain, err = a.drain(r.Context(), name)
	}
	answerAdmin(w, drain, err)
}

// drain tells how far a drain is, by the newest records.
func (a *admin) drain(ctx context.Context, name string) (*Drain, error) {
	member, err := a.find(ctx, name)
	if err != nil {
		return nil, err
	}
	usage, err := a.store.ShardUsage()
	if err != nil {
		return nil, fmt.Errorf("ask what node %s holds: %w", name, err)
	}
	of := usage[member.Id]
	return &Drain{Node: name, Draining: member.State == atoll.NodeState_NODE_STATE_DRAINING, Shards: of.GetShards(), Bytes: of.GetBytes()}, nil
}

// startDrain has a node emptied, if the others can take what it holds. What others
// drain at the same time is counted in: see metadata.Store.DrainNode.
func (a *admin) startDrain(ctx context.Context, name string) (err error) {
	for range drainTries {
		if err = a.tryDrain(ctx, name); !errors.Is(err, metadata.ErrPrecondition) {
			return err
		}
	}
	return refusal(fmt.Sprintf("node %s is not drained, since other nodes are being drained, removed or added at this moment: try again", name))
}

func (a *admin) tryDrain(ctx context.Context, name string) error {
	member, err := a.find(ctx, name)
	if err != nil || member.State == atoll.NodeState_NODE_STATE_DRAINING {
		return err
	}
	err = a.store.DrainNode(ctx, member.Id, func() error { return a.blobs.CheckDrain(ctx, member.Id) })
	if errors.Is(err, blobstore.ErrInsufficientNodes) || errors.Is(err, blobstore.ErrNoSpace) {
		return refusal(fmt.Sprintf("node %s can't be drained, since the others could not take its place: %v: add nodes or space first", name, err))
	}
	return err
}

func (a *admin) cancelDrain(ctx context.Context, name string) error {
	member, err := a.find(ctx, name)
	if err != nil || member.State != atoll.NodeState_NODE_STATE_DRAINING {
		return err
	}
	return a.store.SetNodeState(ctx, member.Id, atoll.NodeState_NODE_STATE_ACTIVE)
}

// find returns the member with a name, by the newest records.
func (a *admin) find(ctx context.Context, name string) (*atoll.Node, error) {
	if err := a.store.CatchUp(ctx); err != nil {
		return nil, err
	}
	var names []string
	for _, member := range a.peers.members() {
		if member.Name == name {
			return member, nil
		}
		names = append(names, member.Name)
	}
	return nil, refusal(fmt.Sprintf("the cluster has no node %q: its nodes are %s", name, strings.Join(names, ", ")))
}

// refusal says why something is not done that an operator has asked for.
type refusal string

func (r refusal) Error() string { return string(r) }

// flagOf reads a parameter that is true or false. What is not understood must not
// pass for either.
func flagOf(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	flag, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%s=%q is neither true nor false", name, text)
	}
	return flag, nil
}
