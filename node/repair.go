package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// settingsTries is how often a change of the settings is tried when others change
// them at the same time.
const settingsTries = 5

// Repair is what repair has to do, is doing, and may do.
type Repair struct {
	// Leader is the name of the node that leads and so plans the repair; empty if none
	// is known. Without it only the queue and the settings are known.
	Leader string `json:"leader"`
	// DegradedExtents miss a shard or have a damaged one. DownShards and DrainingShards
	// are on nodes that are down or being emptied.
	DegradedExtents uint64 `json:"degraded_extents"`
	DownShards      uint64 `json:"down_shards"`
	DrainingShards  uint64 `json:"draining_shards"`
	// Running are how many extents are being worked on, by the name of the node.
	Running map[string]uint32 `json:"running,omitempty"`
	// Done and Failed count what was done since that node leads, DoneBytes what was
	// written.
	Done      uint64 `json:"done"`
	DoneBytes uint64 `json:"done_bytes"`
	Failed    uint64 `json:"failed"`
	// Waiting are how many extents can't be repaired with the nodes that there are, by
	// reason.
	Waiting map[string]uint32 `json:"waiting,omitempty"`
	// LastError is why something failed last.
	LastError string         `json:"last_error,omitempty"`
	Settings  RepairSettings `json:"settings"`
}

// RepairSettings are the cluster's settings of repair and rebalance.
type RepairSettings struct {
	// BytesPerSecond is what each node may rebuild or move at most, 0 for no bound.
	BytesPerSecond uint64 `json:"bytes_per_second"`
	// Concurrency is how many extents each node works on at once.
	Concurrency uint32 `json:"concurrency"`
	// RebalancePaused says that no shard is moved for the sake of balance.
	RebalancePaused bool `json:"rebalance_paused"`
	// Reencode is true until all extents have the layout that new ones get.
	Reencode bool `json:"reencode"`
}

// RepairChange says what to change of the settings; nil leaves a setting as it is.
type RepairChange struct {
	BytesPerSecond  *uint64
	Concurrency     *uint32
	RebalancePaused *bool
	Reencode        *bool
}

// FetchRepair tells how the repair is doing, through the node whose data folder is
// given.
func FetchRepair(ctx context.Context, dataDir string) (*Repair, error) {
	return askRepair(ctx, dataDir, http.MethodGet, nil)
}

// ChangeRepair changes settings, and returns what is then.
func ChangeRepair(ctx context.Context, dataDir string, change RepairChange) (*Repair, error) {
	query := url.Values{}
	set := func(key string, given bool, value func() any) {
		if given {
			query.Set(key, fmt.Sprint(value()))
		}
	}
	set("bytes-per-second", change.BytesPerSecond != nil, func() any { return *change.BytesPerSecond })
	set("concurrency", change.Concurrency != nil, func() any { return *change.Concurrency })
	set("rebalance-paused", change.RebalancePaused != nil, func() any { return *change.RebalancePaused })
	set("reencode", change.Reencode != nil, func() any { return *change.Reencode })
	return askRepair(ctx, dataDir, http.MethodPost, query)
}

func askRepair(ctx context.Context, dataDir, method string, query url.Values) (*Repair, error) {
	ctx, cancel := context.WithTimeout(ctx, operateTimeout)
	defer cancel()
	repair := &Repair{}
	return repair, askAdmin(ctx, dataDir, method, "/repair?"+query.Encode(), repair)
}

func (a *admin) serveRepair(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		edits, err := settingsEdits(r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err = a.changeSettings(r.Context(), edits); err == nil {
			err = a.store.CatchUp(r.Context()) // so that the answer shows the change
		}
		if err != nil {
			answerAdmin(w, nil, err)
			return
		}
	}
	repair, err := a.repair()
	answerAdmin(w, repair, err)
}

// settingsEdits turns a request into changes of the settings. One that is not
// understood changes nothing.
func settingsEdits(query url.Values) (edits []func(*atoll.Settings), err error) {
	for key, values := range query {
		text := values[0]
		var number uint64
		var flag bool
		switch key {
		case "bytes-per-second":
			number, err = strconv.ParseUint(text, 10, 64)
			edits = append(edits, func(s *atoll.Settings) { s.RepairBytesPerSecond = number })
		case "concurrency":
			number, err = strconv.ParseUint(text, 10, 32)
			edits = append(edits, func(s *atoll.Settings) { s.RepairConcurrency = uint32(number) })
		case "rebalance-paused":
			flag, err = strconv.ParseBool(text)
			edits = append(edits, func(s *atoll.Settings) { s.RebalancePaused = flag })
		case "reencode":
			flag, err = strconv.ParseBool(text)
			edits = append(edits, func(s *atoll.Settings) { s.Reencode = flag })
		default:
			err = errors.New("there is no such setting")
		}
		if err != nil {
			return nil, fmt.Errorf("%s=%q: %w", key, text, err)
		}
	}
	return edits, nil
}

// changeSettings changes the settings, others that are changed meanwhile aside.
func (a *admin) changeSettings(ctx context.Context, edits []func(*atoll.Settings)) (err error) {
	for range settingsTries {
		err = a.store.ChangeSettings(ctx, func(settings *atoll.Settings) {
			for _, edit := range edits {
				edit(settings)
			}
		})
		if !errors.Is(err, metadata.ErrPrecondition) {
			break
		}
	}
	if errors.Is(err, metadata.ErrInvalid) {
		return refusal(err.Error())
	}
	return err
}

// repair gathers what this node knows of the repair. It needs no quorum.
func (a *admin) repair() (*Repair, error) {
	settings := a.store.LocalSettings()
	repair := &Repair{Settings: RepairSettings{
		BytesPerSecond: settings.RepairBytesPerSecond, Concurrency: settings.RepairConcurrency,
		RebalancePaused: settings.RebalancePaused, Reencode: settings.Reencode,
	}}
	var err error
	if repair.DegradedExtents, err = a.store.CountDegraded(); err != nil {
		return nil, err
	}
	usage, err := a.store.ShardUsage()
	if err != nil {
		return nil, fmt.Errorf("ask what nodes hold: %w", err)
	}
	names := make(map[string]string)
	for _, member := range a.peers.members() {
		names[member.Id] = member.Name
		switch {
		case member.Liveness == atoll.Liveness_LIVENESS_DOWN:
			repair.DownShards += usage[member.Id].GetShards()
		case member.State == atoll.NodeState_NODE_STATE_DRAINING:
			repair.DrainingShards += usage[member.Id].GetShards()
		}
	}
	progress, leader := a.repairProgress()
	if progress == nil {
		return repair, nil
	}
	repair.Leader = names[leader]
	repair.Running = make(map[string]uint32, len(progress.Running))
	for id, extents := range progress.Running {
		repair.Running[names[id]] = extents
	}
	repair.Done, repair.DoneBytes, repair.Failed = progress.Done, progress.DoneBytes, progress.Failed
	repair.Waiting, repair.LastError = progress.Waiting, progress.LastError
	return repair, nil
}

// repairProgress returns what the leader says of the repair, which is in its
// heartbeats, and its id; nil if there is no leader that this node hears of.
func (a *admin) repairProgress() (progress *atoll.RepairProgress, leader string) {
	leader, _ = a.replica.Leader()
	if leader == a.self.Id {
		return repairProgress(a.blobs), leader
	}
	stats, _, ok := a.peers.answer(leader)
	if !ok || !a.peers.reachable(leader) {
		return nil, leader
	}
	return stats.Repair, leader
}

// repairProgress describes the repair; nil on a node that does not lead.
func repairProgress(blobs *blobstore.Store) *atoll.RepairProgress {
	status, leads := blobs.RepairStatus()
	if !leads {
		return nil
	}
	progress := &atoll.RepairProgress{
		Running: make(map[string]uint32), Waiting: make(map[string]uint32),
		Done: status.Done, DoneBytes: status.DoneBytes, Failed: status.Failed, LastError: status.LastError,
	}
	for id, extents := range status.Running {
		progress.Running[id] = uint32(extents)
	}
	for reason, extents := range status.Waiting {
		progress.Waiting[reason] = uint32(extents)
	}
	return progress
}
