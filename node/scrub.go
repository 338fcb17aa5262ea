package node

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

// scrubAskTimeout bounds the question to one node.
const scrubAskTimeout = 5 * time.Second

// Scrub is how far one node is with reading its shards again.
type Scrub struct {
	// Node is the node's name.
	Node string `json:"node"`
	// Error says why nothing is known of it; empty if something is.
	Error string `json:"error,omitempty"`
	// Running: a pass is under way, of which DonePercent is behind.
	Running     bool    `json:"running"`
	DonePercent float64 `json:"done_percent"`
	// Current is the pass under way, or the last one; Last the last that has ended, nil
	// if none has.
	Current *ScrubPass `json:"current,omitempty"`
	Last    *ScrubPass `json:"last,omitempty"`
}

// ScrubPass is one look at all shards of a node.
type ScrubPass struct {
	Started time.Time `json:"started"`
	// Ended is nil while the pass is under way.
	Ended *time.Time `json:"ended,omitempty"`
	// Shards and Bytes were read.
	Shards uint64 `json:"shards"`
	Bytes  uint64 `json:"bytes"`
	// Damaged shards were not what had been written, Missing ones were not there.
	Damaged uint64 `json:"damaged"`
	Missing uint64 `json:"missing"`
}

// FetchScrub tells how far all nodes are, through the node whose data folder is
// given.
func FetchScrub(ctx context.Context, dataDir string) (scrubs []Scrub, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	return scrubs, askAdmin(ctx, dataDir, http.MethodGet, "/scrub", &scrubs)
}

// StartScrub has all nodes that answer read their shards now.
func StartScrub(ctx context.Context, dataDir string) (scrubs []Scrub, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	return scrubs, askAdmin(ctx, dataDir, http.MethodPost, "/scrub", &scrubs)
}

func (a *admin) serveScrub(w http.ResponseWriter, r *http.Request) {
	answerAdmin(w, a.scrub(r.Context(), r.Method == http.MethodPost), nil)
}

// scrub asks all nodes at once.
func (a *admin) scrub(ctx context.Context, now bool) []Scrub {
	ctx, cancel := context.WithTimeout(ctx, scrubAskTimeout)
	defer cancel()
	members := a.peers.members()
	scrubs := make([]Scrub, len(members))
	var asking sync.WaitGroup
	for i, member := range members {
		asking.Go(func() {
			answer, err := a.blobs.ScrubOn(ctx, member.Id, now)
			if err != nil {
				scrubs[i] = Scrub{Node: member.Name, Error: err.Error()}
				return
			}
			scrubs[i] = Scrub{
				Node: member.Name, Running: answer.Running, DonePercent: float64(answer.DonePermille) / 10,
				Current: scrubPass(answer.Current), Last: scrubPass(answer.Last),
			}
		})
	}
	asking.Wait()
	slices.SortFunc(scrubs, func(x, y Scrub) int { return strings.Compare(x.Node, y.Node) })
	return scrubs
}

func scrubPass(p *atoll.ScrubPass) *ScrubPass {
	if p.GetStartedUnixMs() == 0 {
		return nil
	}
	pass := &ScrubPass{Started: time.UnixMilli(p.StartedUnixMs), Shards: p.Shards, Bytes: p.Bytes, Damaged: p.Damaged, Missing: p.Missing}
	if p.EndedUnixMs != 0 {
		ended := time.UnixMilli(p.EndedUnixMs)
		pass.Ended = &ended
	}
	return pass
}
