package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"google.golang.org/grpc/status"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// formationInterval is the pause between two looks at the other nodes.
	formationInterval = 250 * time.Millisecond
	// votersTimeout bounds the wait of a new node for the Raft group to have its
	// voters.
	votersTimeout = 60 * time.Second
	// waitingLogInterval is how often a node that waits for others says so.
	waitingLogInterval = 10 * time.Second
)

// formation brings a node into its cluster: it forms one, joins one, or finds
// itself in the one that it belongs to.
type formation struct {
	cfg     *Config
	folder  *dataFolder
	self    *atoll.Node
	store   *metadata.Store
	replica *consensus.Replica
	pool    *connPool
	// keys are nil with certificates from files.
	keys *keyring
	log  zerolog.Logger
}

// Run returns when the node is a member, or with an error that asking again
// would not mend.
func (f *formation) Run(ctx context.Context) error {
	// A node that rejoins has no log, and must not make a cluster of its own by that.
	if f.replica.HasState() || f.folder.identity.ClusterID != "" {
		if err := f.checkCluster(ctx); err != nil {
			return err
		}
	} else if err := f.formOrFind(ctx); err != nil {
		return err
	}
	if err := f.becomeMember(ctx); err != nil {
		return err
	}
	// A recovered cluster has as many voters as its operator has brought back so far.
	if f.folder.identity.ClusterID == "" && len(f.store.Recoveries()) == 0 {
		if err := f.awaitVoters(ctx); err != nil {
			return err
		}
	}
	return f.folder.setCluster(f.store.ClusterID())
}

// awaitVoters holds a new node back until the Raft group has as many voters as
// it is going to have. While a cluster forms, its first node is the only voter
// for some seconds, and what was acknowledged then would not survive its loss.
func (f *formation) awaitVoters(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, votersTimeout)
	defer cancel()
	for {
		voters, wanted := f.voters()
		if voters >= wanted {
			return nil
		}
		if err := pause(ctx, formationInterval); err != nil {
			// A majority of the voters it should have: with less, most nodes may have
			// formed a cluster without this one, by a list in another order.
			if errors.Is(err, context.DeadlineExceeded) && voters <= wanted/2 {
				return fmt.Errorf("%d of %d nodes joined within %s: see that all nodes have the same list in join, in the same order, and start again", voters, wanted, votersTimeout)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				f.log.Warn().Int("voters", voters).Int("wanted", wanted).Msg("serving with fewer voters than the cluster should have")
				return nil
			}
			return err
		}
	}
}

// voters counts the Raft group's voters and those it should have.
func (f *formation) voters() (have, wanted int) {
	members := f.replica.Status().Members
	for _, member := range members {
		if member.Voter {
			have++
		}
	}
	expected := len(f.cfg.Join)
	if f.keys != nil {
		expected = 0 // the others come when an operator gives them a join token
	}
	return have, min(max(len(members), expected), consensus.DefaultConfig().MaxVoters)
}

// formOrFind decides for an empty folder whether this node forms the cluster. It
// does so only if it was told to, or if every node of the list answers that it
// belongs to none: a wiped node must find its old cluster, not make another.
func (f *formation) formOrFind(ctx context.Context) error {
	if f.keys != nil {
		founded, err := f.keys.founded()
		if err != nil {
			return err
		}
		if founded != nil {
			return f.form()
		}
	}
	others := slices.ContainsFunc(f.cfg.Join, func(address string) bool { return address != f.self.ClusterAddress })
	switch {
	case f.cfg.Bootstrap && !others && f.keys == nil:
		return f.form()
	case len(f.cfg.Join) == 0:
		return errors.New("the data folder is empty and the node was not told which cluster to join: " +
			"give the cluster addresses of the nodes with join, or bootstrap to form a new cluster of one node")
	case !others:
		return errors.New("the data folder is empty and join names nobody but this node, who would form a second cluster if it had lost its data: " +
			"list the other nodes as well, or bootstrap to form a new cluster of one node")
	}
	nextLog := time.Now().Add(waitingLogInterval)
	for {
		answers, unanswered := f.identifyAll(ctx)
		for _, answer := range answers {
			if answer.ClusterId != "" && answer.NodeId != f.self.Id {
				return nil // becomeMember joins it
			}
		}
		// With a join token there is a cluster somewhere, which none may be formed beside.
		if f.keys == nil && (f.cfg.Bootstrap && len(unanswered) == 0 || f.forms(unanswered)) {
			return f.form()
		}
		if time.Now().After(nextLog) {
			nextLog = time.Now().Add(waitingLogInterval)
			f.log.Warn().Strs("unanswered", unanswered).Str("forming", f.cfg.Join[0]).
				Msg("waiting for the other nodes: the first of the list forms the cluster once all of them have answered")
		}
		if err := pause(ctx, formationInterval); err != nil {
			return err
		}
	}
}

// forms tells whether this node is the one that forms the cluster, given that no
// node of the list belongs to one.
func (f *formation) forms(unanswered []string) bool {
	return len(unanswered) == 0 && f.cfg.Join[0] == f.self.ClusterAddress
}

func (f *formation) form() error {
	f.log.Info().Msg("forming a new cluster")
	if err := f.replica.Bootstrap(); err != nil {
		return fmt.Errorf("form cluster: %w", err)
	}
	return nil
}

// identifyAll asks every address of the list who is there. This node itself
// counts as answered.
func (f *formation) identifyAll(ctx context.Context) (answers []*atoll.IdentifyResponse, unanswered []string) {
	for _, address := range f.cfg.Join {
		answer, err := f.pool.identify(ctx, address)
		if err != nil {
			f.log.Debug().Err(err).Str("address", address).Msg("no answer")
			unanswered = append(unanswered, address)
			continue
		}
		answers = append(answers, answer)
	}
	return answers, unanswered
}

// checkCluster refuses to start a node on the data of another cluster than the
// one it is told to join. Nodes that don't answer say nothing.
func (f *formation) checkCluster(ctx context.Context) error {
	own := f.folder.identity.ClusterID
	if known := f.store.ClusterID(); known != "" {
		if own != "" && own != known {
			return fmt.Errorf("data folder %s is damaged: %s says cluster %s, the state says %s", f.path(), identityFile, own, known)
		}
		own = known
	}
	answers, _ := f.identifyAll(ctx)
	lineage := lineage{own, f.store.Recoveries()}
	for _, answer := range answers {
		// A node that rejoins has no state yet to tell it where its cluster comes from.
		if answer.ClusterId == own && len(answer.Recoveries) > len(lineage.recoveries) {
			lineage.recoveries = answer.Recoveries
		}
	}
	for _, answer := range answers {
		if err := lineage.superseded(answer); err != nil {
			return err
		}
		if lineage.isRelated(answer) {
			continue // it gives way to this node's cluster
		}
		if own != "" && answer.ClusterId != "" && answer.ClusterId != own {
			return fmt.Errorf("data folder %s belongs to cluster %s, but the node %s to be joined is in cluster %s: "+
				"start with the right folder, or move this one away to join as a new node", f.path(), own, answer.Name, answer.ClusterId)
		}
	}
	return nil
}

func (f *formation) path() string { return f.folder.path }

// becomeMember returns when the state machine has this node's record as it is
// configured now. The leader of a cluster that has no name yet gives it one.
func (f *formation) becomeMember(ctx context.Context) error {
	nextLog := time.Now().Add(waitingLogInterval)
	for {
		err := f.tryBecomeMember(ctx)
		if err == nil {
			return nil
		}
		if status.Code(err) == codeRemoved || errors.Is(err, metadata.ErrNodeRemoved) {
			return fmt.Errorf("join the cluster: %w", ErrRemoved)
		}
		if isFinal(err) {
			return fmt.Errorf("join the cluster: %w", err)
		}
		if expired := f.expired(); expired != nil {
			return fmt.Errorf("join the cluster: %w: %w", expired, err)
		}
		if time.Now().After(nextLog) {
			nextLog = time.Now().Add(waitingLogInterval)
			f.log.Warn().Err(err).Msg("not in the cluster yet, trying again")
		}
		if err := pause(ctx, formationInterval); err != nil {
			return err
		}
	}
}

// expired returns an error once this node's certificate counts no more: the others don't
// take its calls, and it gets another only by a join token, when it is started again.
func (f *formation) expired() error {
	if f.keys == nil {
		return nil
	}
	leaf := f.keys.tls.certificate.Load().Leaf
	if time.Now().Before(leaf.NotAfter) {
		return nil
	}
	return fmt.Errorf("this node's certificate expired at %s, and it is not a member as it is configured: start it again, with a join token that still counts", leaf.NotAfter.UTC().Format(time.RFC3339))
}

func (f *formation) tryBecomeMember(ctx context.Context) error {
	if wasRemoved(f.store.LocalNodes(), f.self.Id) {
		return metadata.ErrNodeRemoved
	}
	if f.replica.IsLeader() && f.store.ClusterID() == "" {
		if err := f.store.InitCluster(ctx, uuid.NewString()); err != nil {
			return err
		}
	}
	if err := f.handOverAuthority(ctx); err != nil {
		return err
	}
	if f.isMember() {
		return nil
	}
	if f.replica.IsLeader() {
		if err := f.store.PutNode(ctx, f.self, ""); err != nil {
			return err
		}
		return f.replica.AddNode(ctx, f.self.Id, f.self.ClusterAddress)
	}
	return f.askToJoin(ctx)
}

// handOverAuthority puts the authority that this node has made into the state, from where
// the other nodes have it. It is the only node until then, since none gets a join token
// before.
func (f *formation) handOverAuthority(ctx context.Context) error {
	if f.keys == nil {
		return nil
	}
	founded, err := f.keys.founded()
	if err != nil || founded == nil {
		return err
	}
	if f.store.LocalAuthority().GetRevision() == 0 {
		if !f.replica.IsLeader() {
			return errors.New("the cluster's certificate authority is not in its state yet, and this node does not lead")
		}
		if err := f.store.PutAuthority(ctx, 0, []*atoll.AuthorityCertificate{founded}); err != nil {
			return fmt.Errorf("hand the certificate authority over to the cluster: %w", err)
		}
	}
	return f.keys.forgetFounded()
}

// isMember tells whether the applied state has this node's record as configured.
func (f *formation) isMember() bool {
	return slices.ContainsFunc(f.store.LocalNodes(), func(node *atoll.Node) bool {
		if node.Id != f.self.Id || node.State == atoll.NodeState_NODE_STATE_REMOVED {
			return false
		}
		expected := pb.Clone(f.self).(*atoll.Node)
		// These are the cluster's to say.
		expected.State, expected.JoinedUnixMs = node.State, node.JoinedUnixMs
		expected.Liveness, expected.LivenessUnixMs = node.Liveness, node.LivenessUnixMs
		return pb.Equal(node, expected)
	})
}

// askToJoin asks every node it knows of until one takes the request.
func (f *formation) askToJoin(ctx context.Context) error {
	addresses := slices.Clone(f.cfg.Join)
	for _, node := range f.store.LocalNodes() {
		addresses = append(addresses, node.ClusterAddress)
	}
	request := &atoll.JoinRequest{Node: f.self, ClusterId: f.folder.identity.ClusterID}
	var refusals []error
	for _, address := range addresses {
		if address == f.self.ClusterAddress {
			continue
		}
		err := f.join(ctx, address, request)
		if err == nil || isFinal(err) || errors.Is(err, errNotCaughtUp) {
			return err
		}
		refusals = append(refusals, fmt.Errorf("%s: %w", address, err))
	}
	if len(refusals) == 0 {
		return errors.New("no other node is known")
	}
	return errors.Join(refusals...)
}

func (f *formation) join(ctx context.Context, address string, request *atoll.JoinRequest) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	conn, err := f.pool.Conn(address)
	if err != nil {
		return err
	}
	if _, err = atoll.NewMembershipClient(conn).Join(ctx, request); err != nil {
		return err
	}
	return errNotCaughtUp
}

// errNotCaughtUp: the leader took the node in, but the record has not come back
// through the log yet.
var errNotCaughtUp = errors.New("admitted, waiting for the cluster's state")

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
