package node

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/atollregistry/atoll/metadata"
)

// collectTimeout bounds one collection that an operator asked for. What is left
// goes in the leader's own rounds.
const collectTimeout = 10 * time.Minute

// Collection is what collecting garbage on request has found and done.
type Collection struct {
	// DryRun says that nothing was dropped.
	DryRun bool `json:"dryRun"`
	// Garbage is what there was to drop before, one entry for each kind.
	Garbage []Garbage `json:"garbage"`
	// Dropped is how many records went.
	Dropped int `json:"dropped"`
}

// Garbage is what there is of one kind that nothing refers to.
type Garbage struct {
	// Kind is "untagged manifest", "unreferenced blob" (in one repository), "blob"
	// (in none) or "upload" (at rest).
	Kind string `json:"kind"`
	// Kept says that this kind is not collected, and not counted.
	Kept bool `json:"kept"`
	// Due is over its time and goes now; Later goes if nothing refers to it until
	// its time is over.
	Due   int `json:"due"`
	Later int `json:"later"`
	// DueBytes and LaterBytes go from the disks with it, without parity. A blob of
	// several repositories counts with none of them.
	DueBytes   uint64 `json:"dueBytes"`
	LaterBytes uint64 `json:"laterBytes"`
	// Names of what is due, the first hundred.
	Names []string `json:"names"`
}

// Collect has the cluster drop what nothing refers to, through the node whose data
// folder is given; with dryRun it only tells what would go.
func Collect(ctx context.Context, dataDir string, dryRun bool) (*Collection, error) {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	path := "/collect"
	if dryRun {
		path += "?" + url.Values{"dry-run": {"true"}}.Encode()
	}
	collection := &Collection{}
	return collection, askAdmin(ctx, dataDir, http.MethodPost, path, collection)
}

func (a *admin) serveCollect(w http.ResponseWriter, r *http.Request) {
	dryRun, err := flagOf(r, "dry-run")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	collection, err := a.collect(r.Context(), dryRun)
	answerAdmin(w, collection, err)
}

func (a *admin) collect(ctx context.Context, dryRun bool) (*Collection, error) {
	found, err := a.store.Garbage(ctx)
	if err != nil {
		return nil, err
	}
	collection := &Collection{DryRun: dryRun}
	for _, kind := range []metadata.GarbageKind{metadata.GarbageManifest, metadata.GarbageLink, metadata.GarbageBlob, metadata.GarbageUpload} {
		count, counted := found.Kinds[kind]
		collection.Garbage = append(collection.Garbage, Garbage{
			Kind: string(kind), Kept: !counted, Names: append([]string{}, found.Names[kind]...),
			Due: count.Due, Later: count.Later, DueBytes: count.DueBytes, LaterBytes: count.LaterBytes,
		})
	}
	if dryRun {
		return collection, nil
	}
	collection.Dropped, err = a.store.ExpireAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("dropped %d records, then: %w", collection.Dropped, err)
	}
	return collection, nil
}
