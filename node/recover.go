package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// The end of a loss of quorum: an operator has chosen one of the nodes that are left,
// and what it has becomes the cluster's. The cluster gets another id in that step. All
// that nodes say to each other carries that id, so the voters of the cluster as it was
// can't outvote, count or overwrite the new one, whenever they come back.
//
// Before anything is changed, the new id is written into node.json. From then on the
// node does not start until the recovery has been completed, and a recovery that was
// cut off goes on under the same id.

// Recovery is the data folder of a node that is stopped, open for a recovery.
type Recovery struct {
	cfg    Config
	folder *dataFolder
	// machine and offline are the node's state and log; nil if they can't be read, and
	// fault says why.
	machine *metadata.Machine
	offline *consensus.Offline
	fault   error
	pool    *connPool
	dial    Dialer
}

// OpenRecovery opens the data folder of a node that is stopped, for Recover, or for
// Rejoin, which does without a log and a state that can be read.
func OpenRecovery(cfg Config, rejoin bool, log zerolog.Logger) (r *Recovery, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Home(), identityFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("data folder %s has no %s, so there is nothing to recover: name the data folder of a node of the cluster", cfg.Home(), identityFile)
	}
	r = &Recovery{cfg: cfg}
	if r.folder, err = openDataFolder(cfg.Home(), cfg.Name); err != nil {
		return nil, err
	}
	identity, err := loadIdentity(cfg, r.folder)
	if err != nil {
		return nil, errors.Join(err, r.folder.Close())
	}
	dialer := &net.Dialer{Timeout: identifyTimeout}
	r.dial = dialer.DialContext
	r.pool = newConnPool(identity, r.dial, func() string { return "" }, func(string) certified { return certified{} })
	if begun := r.folder.identity.Recovering; begun != nil && begun.Rejoin { // log and state may be gone
		r.fault = r.folder.checkRecovered()
	} else {
		r.fault = r.openState(log)
	}
	if r.fault != nil && !rejoin {
		return nil, errors.Join(r.fault, r.Close())
	}
	return r, nil
}

// openState opens state and log.
func (r *Recovery) openState(log zerolog.Logger) (err error) {
	r.machine, err = metadata.OpenMachine(metadata.MachineConfig{Dir: filepath.Join(r.folder.path, stateDir), Logger: log})
	if err != nil {
		return err
	}
	// Offline returns its errors instead of ending the process.
	cfg := consensusConfig(r.folder, r.cfg.Cluster.Address, func(error) {})
	cfg.Logger = log
	r.offline, err = consensus.OpenOffline(cfg, r.machine)
	return err
}

// Recover makes this node the only voter of a new cluster that has what this node has,
// and returns the new cluster's id. done is told of each step that is done. After an
// error or a crash it is to be called again. What keeps it from being a good idea, the
// survey says: Recover itself does not look.
func (r *Recovery) Recover(done func(step string)) (clusterID string, err error) {
	next := r.folder.identity
	if next.Recovering == nil {
		next.Recovering = &recovering{ClusterID: uuid.NewString()}
		if err := r.folder.write(next); err != nil {
			return "", err
		}
	}
	clusterID = next.Recovering.ClusterID
	status, err := r.offline.Status()
	if err != nil {
		return "", err
	}
	done("cluster named " + clusterID)
	last := func() ([]byte, error) {
		now := time.Now()
		return metadata.RecoverCommand(clusterID, &atoll.Recovery{
			FormerClusterId: r.formerID(clusterID), LastIndex: status.LastIndex, LastTerm: status.LastTerm,
			NodeId: next.ID, RecoveredUnixMs: now.UnixMilli(),
		}, now)
	}
	if err := r.offline.Recover(last, done); err != nil {
		return "", err
	}
	if got := r.machine.ClusterID(); got != clusterID {
		return "", fmt.Errorf("the state says that its cluster is %q, not %s", got, clusterID)
	}
	return clusterID, r.folder.setCluster(clusterID)
}

// formerID is the cluster's id before it gets another one, which it may have already.
func (r *Recovery) formerID(next string) string {
	if all := r.machine.Recoveries(); r.machine.ClusterID() == next && len(all) > 0 {
		return all[len(all)-1].FormerClusterId
	}
	return r.machine.ClusterID()
}

// supersededDir is the folder in a data folder to which log and state of the cluster of
// that id are moved when the node gives them up.
func supersededDir(clusterID string) string { return "superseded-" + clusterID }

// Rejoin gives up the node's log and state, which are moved aside, for those of the
// recovered cluster with the given id; they come once the node is started. Its shards
// stay, and so does its id, under which the records have them. done is told of each step
// that is done. After an error or a crash it is to be called again.
func (r *Recovery) Rejoin(clusterID string, done func(step string)) error {
	if err := r.closeState(); err != nil {
		return err
	}
	next := r.folder.identity
	next.Recovering = &recovering{ClusterID: clusterID, Rejoin: true}
	if err := r.folder.write(next); err != nil {
		return err
	}
	done("cluster named " + clusterID)
	aside := filepath.Join(r.folder.path, supersededDir(next.ClusterID))
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return fmt.Errorf("move log and state aside: %w", err)
	}
	for _, dir := range []string{raftDir, stateDir} {
		if err := moveAside(filepath.Join(r.folder.path, dir), filepath.Join(aside, dir)); err != nil {
			return err
		}
		done(fmt.Sprintf("%s moved to %s", dir, aside))
	}
	next.Recovering, next.Rejoining, next.ClusterID = nil, true, clusterID
	return r.folder.write(next)
}

// moveAside renames a folder durably, unless that was done before.
func moveAside(from, to string) error {
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(to); err == nil {
		return fmt.Errorf("move %s aside: %s is there already: move that away", from, to)
	}
	err := os.Rename(from, to)
	if err == nil {
		err = errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Dir(from)))
	}
	if err != nil {
		return fmt.Errorf("move %s aside: %w", from, err)
	}
	return nil
}

func (r *Recovery) closeState() (err error) {
	if r.offline != nil {
		err = r.offline.Close()
	}
	if r.machine != nil {
		err = errors.Join(err, r.machine.Close())
	}
	r.offline, r.machine = nil, nil
	return err
}

// Close lets go of the data folder.
func (r *Recovery) Close() error {
	return errors.Join(r.closeState(), r.pool.Close(), r.folder.Close())
}

// identifyAll asks all addresses at once who is there, and returns the answers by
// address, and those addresses, sorted, at which a node runs that it can't talk to, since
// one of the two does not take the other's certificate.
func (r *Recovery) identifyAll(ctx context.Context, addresses []string) (answers map[string]*atoll.IdentifyResponse, untrusted []string) {
	type reply struct {
		address string
		answer  *atoll.IdentifyResponse
		runs    bool
	}
	replies := make(chan reply, len(addresses))
	for _, address := range addresses {
		go func() { // ends with identifyTimeout, twice; received from below
			answer, err := r.pool.identify(ctx, address)
			if err != nil {
				// A node needs no certificate to be asked whether it lets others in.
				replies <- reply{address: address, runs: enrolls(ctx, r.dial, address)}
				return
			}
			replies <- reply{address: address, answer: answer}
		}()
	}
	answers = make(map[string]*atoll.IdentifyResponse, len(addresses))
	for range addresses {
		switch got := <-replies; {
		case got.answer != nil:
			answers[got.address] = got.answer
		case got.runs:
			untrusted = append(untrusted, got.address)
		}
	}
	slices.Sort(untrusted)
	return answers, untrusted
}

// addresses are those at which nodes of the cluster may answer, but for this one's.
func (r *Recovery) addresses() []string {
	addresses := slices.Clone(r.cfg.Join)
	for _, node := range r.members() {
		addresses = append(addresses, node.ClusterAddress)
	}
	slices.Sort(addresses)
	return slices.DeleteFunc(slices.Compact(addresses), func(address string) bool { return address == r.cfg.Cluster.Address })
}

// members are the nodes that the state knows and that are not removed.
func (r *Recovery) members() []*atoll.Node {
	if r.machine == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(r.machine.Nodes()), func(node *atoll.Node) bool {
		return node.State == atoll.NodeState_NODE_STATE_REMOVED
	})
}
