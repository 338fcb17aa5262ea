package metadata

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// workOf carries out a command and returns what it dropped or put off, and how
// much work it was.
func workOf(t testing.TB, log *localLog, command *proto.Command) (dropped, work int) {
	t.Helper()
	log.last++
	command.RequestId = requestID(log.last)
	log.machine.applying.Lock()
	defer log.machine.applying.Unlock()
	c := &change{at: *log.machine.at.Load()}
	err := log.machine.db.Update(func(tx *bolt.Tx) error {
		c.tx = tx
		if _, err := c.apply(entryOf(t, log.last, command)); err != nil {
			return err
		}
		return c.savePosition()
	})
	if err != nil {
		t.Fatal(err)
	}
	log.machine.at.Store(&c.at)
	return int(c.result.GetExpired() + c.result.GetRenewed()), c.work
}

// manyChildren is a quarter of what a gateway takes.
const manyChildren = 1024

// wideIndex is an image index of many manifests.
func wideIndex(content string, children int) *proto.Manifest {
	index := manifestOf(content)
	for i := range children {
		index.Manifests = append(index.Manifests, &proto.Descriptor{
			Digest: manifestOf(fmt.Sprint(content, " child ", i)).GetDigest(), MediaType: index.GetMediaType(), Size: 1 << 10,
		})
	}
	return index
}

// expireAll expires until nothing is due, and returns how many records went or were
// put off. Each command must not be more work than allowed.
func expireAll(t *testing.T, s *Store, log *localLog, allowed int) (dropped int) {
	t.Helper()
	for {
		command := &proto.Command{TimeUnixMs: s.cfg.Now().UnixMilli(), Body: &proto.Command_Expire{Expire: s.expireNow()}}
		some, work := workOf(t, log, command)
		dropped += some
		if work > allowed {
			t.Errorf("a command that dropped %d records did %d units of work, more than %d", some, work, allowed)
		}
		if some == 0 {
			return dropped
		}
	}
}

// What is dropped can be large in many ways. One command stays small in all.
func TestWorkOfOneExpireIsBounded(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		name string
		// most is how much work one command may be, expected how many records go.
		most, expected int
		fill           func(t *testing.T, s *Store, log *localLog)
	}{
		{"blobs of many extents", expireWork + 700, 2 * 100, fillBlobs},
		{"uploads of many extents", expireWork + 700, 100, fillUploads},
		{"indexes of manifests that are not there", expireWork + 1200, 12, func(t *testing.T, s *Store, log *localLog) {
			putAll(t, log, wideIndexes("index", 12)...)
		}},
		{"an index of manifests that are there", 4 * manyChildren, 1, func(t *testing.T, s *Store, log *localLog) {
			var manifests []*proto.Manifest
			for i := range manyChildren {
				manifests = append(manifests, manifestOf(fmt.Sprint("index child ", i)))
			}
			putAll(t, log, append(manifests, wideIndex("index", manyChildren))...)
		}},
		{"an index of large indexes", 30, 1, func(t *testing.T, s *Store, log *localLog) {
			manifests, index := wideIndexes("index", 3), manifestOf("index of indexes")
			for _, child := range manifests {
				index.Manifests = append(index.Manifests, &proto.Descriptor{Digest: child.GetDigest()})
			}
			putAll(t, log, append(manifests, index)...)
		}},
		{"referrers that are put off", 20, 3, func(t *testing.T, s *Store, log *localLog) {
			referrers, subject := wideIndexes("referrer", 3), manifestOf("subject")
			for _, referrer := range referrers {
				referrer.Subject = subject.GetDigest()
			}
			putAll(t, log, append(referrers, subject)...)
			if err := s.PutManifest(t.Context(), putOf("app", "subject", "v1")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			now := time.UnixMilli(1_000_000_000)
			s, log := openStore(t, StoreConfig{
				Now: func() time.Time { return now }, BlobGrace: time.Hour, UntaggedAge: time.Hour, UploadTTL: time.Hour,
			})
			joinNodes(t, s, "n1", "n2")
			kind.fill(t, s, log)
			now = now.Add(2 * time.Hour)
			if dropped := expireAll(t, s, log, kind.most); dropped != kind.expected {
				t.Errorf("dropped %d records, not %d", dropped, kind.expected)
			}
			checkInvariants(t, log.machine)
		})
	}
}

// wideIndexes are image indexes of many manifests.
func wideIndexes(name string, n int) (indexes []*proto.Manifest) {
	for i := range n {
		indexes = append(indexes, wideIndex(fmt.Sprint(name, " ", i), manyChildren))
	}
	return indexes
}

// putAll puts manifests in one batch.
func putAll(t *testing.T, log *localLog, manifests ...*proto.Manifest) {
	t.Helper()
	var batch []consensus.Entry
	for _, manifest := range manifests {
		log.last++
		batch = append(batch, entryOf(t, log.last, &proto.Command{
			RequestId: requestID(log.last), TimeUnixMs: 1_000_000_000,
			Body: &proto.Command_PutManifest{PutManifest: &proto.PutManifest{Repository: "app", Manifest: manifest}},
		}))
	}
	if _, err := log.machine.Apply(batch); err != nil {
		t.Fatal(err)
	}
}

// manyExtents are 200 extents of one byte.
func manyExtents(name string) (extents []*proto.Extent) {
	for i := range 200 {
		extents = append(extents, extentOf(fmt.Sprint(name, " ", i), 1, "n1", "n2"))
	}
	return extents
}

func fillBlobs(t *testing.T, s *Store, _ *localLog) {
	for i := range 100 {
		err := s.CommitBlob(t.Context(), &proto.CommitBlob{
			Repository: "app", Digest: digestOf(fmt.Sprint(i)), Size: 200, Extents: manyExtents(fmt.Sprint(i)),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func fillUploads(t *testing.T, s *Store, _ *localLog) {
	for i := range 100 {
		upload, err := createUpload(t.Context(), s, "app", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		extend := &proto.ExtendUpload{Id: upload.GetId(), Repository: "app", Extents: manyExtents(fmt.Sprint(i))}
		if err := s.ExtendUpload(t.Context(), extend); err != nil {
			t.Fatal(err)
		}
	}
}

// A batch that is much work becomes several transactions, with the same results
// and the same state as one command after the other.
func TestLargeBatchIsSplit(t *testing.T) {
	t.Parallel()
	_, one := openStore(t, StoreConfig{})
	_, batched := openStore(t, StoreConfig{})
	still(batched.machine) // to sync is a transaction, too
	var batch []consensus.Entry
	for i := range transactionWork / (MaxInlineManifest >> 10) * 3 / 2 {
		put := putOf("app", strings.Repeat(fmt.Sprintf("%08d", i), MaxInlineManifest/8), "latest")
		batch = append(batch, entryOf(t, uint64(i+1), &proto.Command{
			RequestId: requestID(uint64(i)), TimeUnixMs: 1000, Body: &proto.Command_PutManifest{PutManifest: put},
		}))
	}
	before := transactions(t, batched.machine)
	results, err := batched.machine.Apply(batch)
	if err != nil {
		t.Fatal(err)
	}
	for i, entry := range batch {
		expected, err := one.machine.Apply([]consensus.Entry{entry})
		if err != nil || results[i] == nil || string(expected[0]) != string(results[i]) {
			t.Errorf("entry %d: result %x, not %x (%v)", i, results[i], expected[0], err)
		}
	}
	_, hashOfOne := one.machine.StateHash()
	if _, hash := batched.machine.StateHash(); !bytes.Equal(hash, hashOfOne) {
		t.Errorf("state hash is %x, not %x", hash, hashOfOne)
	}
	if made := transactions(t, batched.machine) - before; made != 2 {
		t.Errorf("the batch took %d transactions", made)
	}
	checkInvariants(t, batched.machine)
}

// transactions counts write transactions since the database was made.
func transactions(t *testing.T, m *Machine) (count int) {
	t.Helper()
	if err := m.view(func(v view) error { count = v.tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return count
}
