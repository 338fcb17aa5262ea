package metadata

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// eventually fails the test if the condition does not hold within the deadline.
func eventually(t *testing.T, deadline time.Duration, condition func() bool) {
	t.Helper()
	timeout := time.After(deadline)
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("not within %s", deadline)
		}
	}
}

// An operator's collection goes on where the leader's round ends.
func TestExpireAll(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }, UploadTTL: time.Hour})
	const uploads = (expireRounds + 2) * expireLimit
	var batch []consensus.Entry
	for i := range uploads {
		log.last++
		batch = append(batch, entryOf(t, log.last, &proto.Command{
			RequestId: requestID(log.last), TimeUnixMs: now.UnixMilli(),
			Body: begin(uploadID(fmt.Sprint(i), "app", ""), "app", "", 0).GetBody(),
		}))
	}
	if _, err := log.machine.Apply(batch); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Hour)
	for _, step := range []struct {
		expire   func(context.Context) (int, error)
		expected int
	}{{s.Expire, expireRounds * expireLimit}, {s.ExpireAll, 2 * expireLimit}, {s.ExpireAll, 0}} {
		if dropped, err := step.expire(t.Context()); err != nil || dropped != step.expected {
			t.Errorf("dropped %d, not %d (%v)", dropped, step.expected, err)
		}
	}
	checkInvariants(t, log.machine)
}

// ExpireAll goes on although it only puts off referrers for a while.
func TestExpireAllPassesOverReferrers(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }, UntaggedAge: time.Hour})
	var manifests []*proto.Manifest
	for i := range 2 * expireLimit {
		referrer := manifestOf(fmt.Sprint("referrer ", i))
		referrer.Subject = digestOf("subject")
		manifests = append(manifests, referrer)
	}
	putAll(t, log, manifests...)
	now = now.Add(time.Minute)
	for _, put := range []*proto.PutManifest{putOf("app", "subject", "v1"), putOf("app", "stray")} {
		if err := s.PutManifest(t.Context(), put); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(2 * time.Hour)
	if dropped, err := s.expireBefore(t.Context(), s.expireNow(), 2); err != nil || dropped != 0 {
		t.Fatalf("dropped %d manifests before the referrers were passed over (%v)", dropped, err)
	}
	if dropped, err := s.ExpireAll(t.Context()); err != nil || dropped != 1 {
		t.Errorf("dropped %d manifests, not the stray one behind the referrers (%v)", dropped, err)
	}
	checkInvariants(t, log.machine)
}

func TestExpire(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{
		Now: func() time.Time { return now }, UploadTTL: 3 * time.Hour, FinishedTTL: time.Hour, BlobGrace: 2 * time.Hour,
	})
	joinNodes(t, s, "n1", "n2")
	const uploads = 2*expireLimit + 10
	for range uploads {
		if _, err := createUpload(t.Context(), s, "app", "", 0); err != nil {
			t.Fatal(err)
		}
	}
	upload, err := createUpload(t.Context(), s, "app", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CommitBlob(t.Context(), &proto.CommitBlob{Repository: "app", Digest: digestOf(""), UploadId: upload.GetId()}); err != nil {
		t.Fatal(err)
	}
	digest := pushBlob(t, s, "app", "layer", "n1", "n2")
	if err := s.DeleteBlob(t.Context(), "app", digest); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after    time.Duration
		expected int
	}{
		{0, 0}, {time.Hour, 0}, {time.Millisecond, 1}, {time.Hour, 3}, {time.Hour - time.Millisecond, 0}, {time.Millisecond, uploads}, {0, 0},
	} {
		now = now.Add(step.after)
		last := log.last
		dropped, err := s.Expire(t.Context())
		if err != nil || dropped != step.expected {
			t.Errorf("at %s: dropped %d, not %d (%v)", now, dropped, step.expected, err)
		}
		if step.expected == 0 && log.last != last {
			t.Errorf("at %s: proposed a command with nothing to drop", now)
		}
	}
	checkInvariants(t, log.machine)
}

func TestRunExpiresUntilItIsStopped(t *testing.T) {
	s, log := openStore(t, StoreConfig{UploadTTL: time.Nanosecond, ExpireInterval: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }() // waited for below
	if _, err := createUpload(t.Context(), s, "app", "", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() bool { return dump(t, log.machine, "uploads") == "" })
	cancel()
	if err := <-stopped; err != nil {
		t.Errorf("error is %v", err)
	}
}

// Nobody can log in before there is a token key: a leader that could not make one at
// once does not wait for the next round of expiry.
func TestRunMakesKeysSoon(t *testing.T) {
	s, log := troubledStore(t, StoreConfig{ExpireInterval: time.Hour})
	log.propose = func(_ context.Context, n int, deliver func() ([]byte, error)) ([]byte, error) {
		if n < 3 {
			return nil, consensus.ErrNoLeader
		}
		return deliver()
	}
	log.machine.tending.Store(true) // a timer would be one of the bubble
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	signing, err := s.SigningKeys()
	if err != nil || len(signing) != 1 || len(s.TokenKeys()) != 1 {
		t.Errorf("%d keys for signing, %d for tokens (%v)", len(signing), len(s.TokenKeys()), err)
	}
	if len(log.proposed) != 5 {
		t.Errorf("%d proposals for two keys of which three failed", len(log.proposed))
	}
}

// TestCensusCountsEveryBlobOnce compares the census with a count of all blobs.
func TestCensusCountsEveryBlobOnce(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	nodes := []string{"n1", "n2", "n3", "n4", "n5"}
	joinNodes(t, s, nodes...)
	random := rand.New(rand.NewPCG(9, 0))
	for i := range 300 {
		commit := &proto.CommitBlob{Repository: "app", Digest: digestOf(fmt.Sprint(i))}
		for e := range random.IntN(4) {
			extent := extentOf(fmt.Sprintf("e%d-%d", i, e), 5, "", "", "")
			extent.Layout.DataShards, extent.Layout.ParityShards = 2, 1
			for number, node := range random.Perm(len(nodes))[:3] {
				if random.IntN(20) > 0 || number > 0 {
					extent.Holders[number] = nodes[node]
				}
			}
			commit.Extents = append(commit.Extents, extent)
			commit.Size += 5
		}
		if err := s.CommitBlob(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	upload, err := createUpload(t.Context(), s, "app", "", 0) // not a blob
	if err != nil {
		t.Fatal(err)
	}
	extent := extentOf("upload", 5, "n1", "")
	if err := s.ExtendUpload(t.Context(), &proto.ExtendUpload{Id: upload.GetId(), Repository: "app", Extents: []*proto.Extent{extent}}); err != nil {
		t.Fatal(err)
	}
	check := func(unhealthy map[string]bool) {
		t.Helper()
		whole, degraded, lost, err := s.Census(t.Context(), func(id string) bool { return unhealthy[id] })
		if err != nil {
			t.Fatal(err)
		}
		expected := countBlobs(t, s, unhealthy)
		if actual := [3]uint64{whole, degraded, lost}; actual != expected {
			t.Errorf("without %v: %d blobs, not %d", unhealthy, actual, expected)
		}
	}
	check(nil)
	check(map[string]bool{"n3": true})
	check(map[string]bool{"n1": true, "n5": true})
	check(map[string]bool{"n1": true, "n2": true, "n3": true, "n4": true, "n5": true})
	if err := s.SetNodeState(t.Context(), "n2", proto.NodeState_NODE_STATE_REMOVED); err != nil {
		t.Fatal(err)
	}
	check(map[string]bool{"n2": true})
	if dropped, err := s.Expire(t.Context()); err != nil || dropped == 0 {
		t.Fatalf("took %d shards off the records (%v)", dropped, err)
	}
	check(map[string]bool{"n2": true})
	check(map[string]bool{"n2": true, "n4": true})
	checkInvariants(t, log.machine)
}

// countBlobs counts whole, degraded and lost blobs by looking at each.
func countBlobs(t *testing.T, s *Store, unhealthy map[string]bool) (counts [3]uint64) {
	t.Helper()
	err := s.machine.view(func(v view) error {
		return v.scan(bucketBlobs, span{}, func(digest, _ []byte) error {
			blob, err := v.blob(string(digest))
			if err != nil {
				return err
			}
			state := 0
			for _, extent := range blob.GetExtents() {
				held := 0
				for _, holder := range extent.GetHolders() {
					if holder != "" && !unhealthy[holder] {
						held++
					}
				}
				switch {
				case held < int(extent.GetLayout().GetDataShards()):
					state = 2
				case held < len(extent.GetHolders()):
					state = max(state, 1)
				}
			}
			counts[state]++
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

// TestReleaseIsWhole: a removed node's shards are all off the records in one go, since
// none is repaired before.
func TestReleaseIsWhole(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "a", "b")
	const extents = 3*releaseLimit + 1
	var all []*proto.Extent
	for i := range extents {
		all = append(all, extentOf(fmt.Sprintf("e%05d", i), 1, "a", "b"))
	}
	if err := s.CommitBlob(t.Context(), &proto.CommitBlob{Repository: "r", Digest: digestOf("x"), Size: extents, Extents: all}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetNodeState(t.Context(), "b", proto.NodeState_NODE_STATE_REMOVED); err != nil {
		t.Fatal(err)
	}
	released, err := s.release(t.Context())
	if degraded, countErr := s.CountDegraded(); released != extents || degraded != extents || err != nil || countErr != nil {
		t.Errorf("of %d shards, %d were released and %d extents are degraded: %v, %v", extents, released, degraded, err, countErr)
	}
}
