package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// history is a random log, the machine that it was made on, and what that
// answered when it got one entry at a time.
type history struct {
	t       testing.TB
	rand    *rand.Rand
	machine *Machine
	entries []consensus.Entry
	results [][]byte
	extents int
	last    uint64
}

// makeHistory makes a log of commands that mostly make sense, with some repeated
// and some without data between them.
func makeHistory(t testing.TB, seed uint64, length int) *history {
	t.Helper()
	h := &history{t: t, rand: rand.New(rand.NewPCG(seed, 0)), machine: openMachine(t, t.TempDir())}
	t.Logf("seed %d", seed)
	for i := range 4 {
		h.add(&proto.Command{Body: &proto.Command_PutNode{PutNode: &proto.PutNode{
			Node: &proto.Node{Id: h.node(i), Name: h.node(i)},
		}}})
	}
	for len(h.entries) < length {
		switch h.rand.IntN(20) {
		case 0:
			h.append(nil)
		case 1:
			h.append(h.entries[h.rand.IntN(len(h.entries))].Data)
		default:
			h.add(h.command())
		}
	}
	return h
}

func (h *history) add(command *proto.Command) {
	command.RequestId = requestID(uint64(len(h.entries)))
	command.TimeUnixMs = int64(1000 + 10*len(h.entries) + h.rand.IntN(100))
	data, err := encodeCommand(command)
	if err != nil {
		h.t.Fatal(err)
	}
	h.append(data)
}

func (h *history) append(data []byte) {
	h.last += 1 + uint64(h.rand.IntN(2)) // some log indexes never reach the state machine
	entry := consensus.Entry{Index: h.last, Term: 1 + h.last/100, Data: data}
	results, err := h.machine.Apply([]consensus.Entry{entry})
	if err != nil {
		h.t.Fatal(err)
	}
	h.entries, h.results = append(h.entries, entry), append(h.results, results[0])
}

func (h *history) node(i int) string          { return fmt.Sprintf("node-%d", i) }
func (h *history) repository() string         { return fmt.Sprintf("repository-%d", h.rand.IntN(2)) }
func (h *history) tag() string                { return fmt.Sprintf("tag-%d", h.rand.IntN(5)) }
func (h *history) owner() string              { return []string{"", "user:a", "robot:b"}[h.rand.IntN(3)] }
func (h *history) content(kind string) string { return fmt.Sprintf("%s-%d", kind, h.rand.IntN(4)) }

// upload returns the id of one of a few uploads, and a repository and an owner, mostly the upload's.
func (h *history) upload() (id, repository, owner string) {
	n := h.rand.IntN(4)
	repository, owner = h.repository(), []string{"", "user:a", "robot:b", ""}[n]
	id = uploadID(fmt.Sprintf("upload-%d", n), repository, owner)
	if h.rand.IntN(6) == 0 {
		repository, owner = h.repository(), h.owner()
	}
	return id, repository, owner
}

// extent returns an extent with another id each time.
func (h *history) extent(size uint64) *proto.Extent {
	h.extents++
	first := h.rand.IntN(4)
	e := extentOf(fmt.Sprintf("e%d", h.extents), size, h.node(first), h.node((first+1)%4))
	if h.rand.IntN(5) == 0 {
		e.Holders[1] = ""
	}
	return e
}

// extentAt is extent for a place where every third is inline.
func (h *history) extentAt(size uint64) *proto.Extent {
	e := h.extent(size)
	if h.extents%3 == 0 {
		return inlineOf(string(e.GetId()), strings.Repeat("x", int(size)))
	}
	return e
}

func (h *history) uploadSize(id string) uint64 {
	var record proto.UploadRecord
	err := h.machine.view(func(v view) error {
		_, err := v.record(bucketUploads, keyOf(id), &record)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.rand.IntN(10) == 0 {
		return record.GetSize() + 1
	}
	return record.GetSize()
}

func (h *history) command() *proto.Command {
	switch h.rand.IntN(13) {
	case 12:
		return h.accessCommand()
	case 0:
		id, repository, owner := h.upload()
		return begin(id, repository, owner, uint32(h.rand.IntN(3)))
	case 1, 2:
		id, repository, owner := h.upload()
		return &proto.Command{Body: &proto.Command_ExtendUpload{ExtendUpload: &proto.ExtendUpload{
			Id: id, Repository: repository, ExpectedSize: h.uploadSize(id), Extents: []*proto.Extent{h.extentAt(10)}, Begin: h.begin(owner),
		}}}
	case 3:
		id, repository, owner := h.upload()
		size := h.uploadSize(id)
		return &proto.Command{Body: &proto.Command_CommitBlob{CommitBlob: &proto.CommitBlob{
			Repository: repository, Digest: digestOf(fmt.Sprintf("blob of %d", size)), Size: size, UploadId: id, ExpectedSize: size, Begin: h.begin(owner),
		}}}
	case 4, 5:
		return &proto.Command{Body: &proto.Command_CommitBlob{CommitBlob: &proto.CommitBlob{
			Repository: h.repository(), Digest: digestOf(h.content("blob")), Size: 7, Extents: []*proto.Extent{h.extentAt(4), h.extentAt(3)},
		}}}
	case 6:
		return &proto.Command{Body: &proto.Command_UnlinkBlob{UnlinkBlob: &proto.UnlinkBlob{
			Repository: h.repository(), Digest: digestOf(h.content("blob")),
		}}}
	case 7, 8:
		return h.putManifest()
	case 9:
		return &proto.Command{Body: &proto.Command_DeleteTag{DeleteTag: &proto.DeleteTag{Repository: h.repository(), Tag: h.tag(), Precondition: h.precondition()}}}
	case 10:
		return &proto.Command{Body: &proto.Command_DeleteManifest{DeleteManifest: &proto.DeleteManifest{
			Repository: h.repository(), Digest: digestOf(h.content("manifest")), Precondition: h.precondition(),
		}}}
	default:
		return h.rareCommand()
	}
}

func (h *history) begin(owner string) *proto.UploadBegin {
	if h.rand.IntN(2) == 0 {
		return nil
	}
	return &proto.UploadBegin{Owner: owner, OwnerLimit: uint32(h.rand.IntN(3)), AgeLimitMs: math.MaxInt64}
}

func (h *history) putManifest() *proto.Command {
	manifest := manifestOf(h.content("manifest"))
	manifest.Blobs = []*proto.Descriptor{{Digest: digestOf(h.content("blob"))}}
	manifest.Annotations = map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}
	put := &proto.PutManifest{Repository: h.repository(), Manifest: manifest, Precondition: h.precondition()}
	for range h.rand.IntN(3) {
		put.Tags = append(put.Tags, h.tag())
	}
	if h.rand.IntN(2) == 0 {
		manifest.Subject = digestOf(h.content("manifest"))
	}
	if h.rand.IntN(3) == 0 {
		manifest.Manifests = []*proto.Descriptor{{Digest: digestOf(h.content("manifest"))}, {Digest: digestOf("elsewhere")}}
	}
	if h.rand.IntN(3) == 0 {
		manifest.OptionalBlobs = []*proto.Descriptor{{Digest: digestOf(h.content("blob"))}}
	}
	if h.rand.IntN(3) == 0 {
		manifest.Content, manifest.StoredAsBlob = nil, true
		put.Extents = []*proto.Extent{h.extent(manifest.GetSize())}
	}
	return &proto.Command{Body: &proto.Command_PutManifest{PutManifest: put}}
}

// precondition returns one that often does not hold; nil for none.
func (h *history) precondition() *proto.Precondition {
	switch h.rand.IntN(8) {
	case 0:
		return &proto.Precondition{Exists: true}
	case 1:
		return &proto.Precondition{Missing: true}
	case 2:
		return &proto.Precondition{Digests: []string{digestOf(h.content("manifest")), digestOf(h.content("manifest"))}}
	case 3:
		return &proto.Precondition{NotDigests: []string{digestOf(h.content("manifest"))}}
	default:
		return nil
	}
}

func (h *history) rareCommand() *proto.Command {
	switch h.rand.IntN(8) {
	case 0:
		return &proto.Command{Body: &proto.Command_MountBlob{MountBlob: &proto.MountBlob{
			Repository: h.repository(), From: h.repository(), Digest: digestOf(h.content("blob")),
		}}}
	case 1:
		id, repository, owner := h.upload()
		return &proto.Command{Body: &proto.Command_CancelUpload{CancelUpload: &proto.CancelUpload{
			Id: id, Repository: repository, Owner: owner, AgeLimitMs: uint64(h.rand.IntN(2)) * math.MaxInt64,
		}}}
	case 2:
		before := int64(1000 + 10*h.rand.IntN(len(h.entries)))
		return &proto.Command{Body: &proto.Command_Expire{Expire: &proto.Expire{
			UploadsBeforeUnixMs: before, FinishedBeforeUnixMs: before, BlobsBeforeUnixMs: before, Limit: 3,
			ManifestsBeforeUnixMs: before * int64(h.rand.IntN(2)),
		}}}
	case 3:
		node := &proto.PutNode{Node: &proto.Node{Id: h.node(3), Name: h.node(3)}}
		if h.rand.IntN(4) == 0 { // it is replaced; from then on extents with a shard on it are refused
			node = &proto.PutNode{Node: &proto.Node{Id: "node-new", Name: h.node(3)}, ReplacesId: h.node(3)}
		}
		return &proto.Command{Body: &proto.Command_PutNode{PutNode: node}}
	case 4:
		return &proto.Command{Body: &proto.Command_RenewBlob{RenewBlob: &proto.RenewBlob{
			Repository: h.repository(), Digest: digestOf(h.content("blob")),
		}}}
	case 5:
		return &proto.Command{Body: &proto.Command_RenewManifest{RenewManifest: &proto.RenewManifest{
			Repository: h.repository(), Digest: digestOf(h.content("manifest")),
		}}}
	case 6:
		return &proto.Command{Body: &proto.Command_PutSigningKey{PutSigningKey: &proto.PutSigningKey{Key: &proto.SigningKey{
			Id: uint32(h.rand.IntN(6)), Secret: bytes.Repeat([]byte{1}, signingKeyBytes),
		}}}}
	default:
		index, hash := h.machine.Checkpoint()
		return &proto.Command{Body: &proto.Command_Checkpoint{Checkpoint: &proto.Checkpoint{PreviousIndex: index, PreviousHash: hash}}}
	}
}

// accessCommand changes who may do what.
func (h *history) accessCommand() *proto.Command {
	name := fmt.Sprintf("account-%d", h.rand.IntN(2))
	account := &proto.Account{Name: name, Kind: proto.AccountKind_ACCOUNT_KIND_USER, Groups: []string{h.tag()}}
	if h.rand.IntN(2) == 0 {
		account.Disabled, account.PasswordHash = true, []byte(h.tag())
	}
	switch h.rand.IntN(5) {
	case 0:
		return &proto.Command{Body: &proto.Command_PutAccount{PutAccount: &proto.PutAccount{Account: account}}}
	case 1:
		previous := &proto.Account{}
		err := h.machine.view(func(v view) error {
			_, err := v.record(bucketAccounts, keyOf(name), previous)
			return err
		})
		if err != nil {
			h.t.Fatal(err)
		}
		return &proto.Command{Body: &proto.Command_PutAccount{PutAccount: &proto.PutAccount{Account: account, Previous: previous}}}
	case 2:
		return &proto.Command{Body: &proto.Command_DeleteAccount{DeleteAccount: &proto.DeleteAccount{Name: name}}}
	case 3:
		return &proto.Command{Body: &proto.Command_PutTokenKey{PutTokenKey: &proto.PutTokenKey{Key: &proto.TokenKey{
			Id: uint32(h.rand.IntN(6)), Seed: bytes.Repeat([]byte{1}, 32),
		}}}}
	default:
		return &proto.Command{Body: &proto.Command_PutPolicy{PutPolicy: &proto.PutPolicy{
			PreviousRevision: h.machine.access.policy.Load().Revision(),
			Policy: &proto.Policy{Immutable: []*proto.ImmutableTags{{
				Repositories: []string{h.repository()}, Tags: []string{h.tag()},
			}}},
		}}}
	}
}

// checkSame fails unless the machine has the history's state.
func (h *history) checkSame(t testing.TB, m *Machine) {
	t.Helper()
	index, hash := m.StateHash()
	expectedIndex, expectedHash := h.machine.StateHash()
	if index != expectedIndex || !bytes.Equal(hash, expectedHash) {
		t.Errorf("state is %d %x, not %d %x", index, hash, expectedIndex, expectedHash)
	}
	if actual, expected := dump(t, m), dump(t, h.machine); actual != expected {
		t.Errorf("records differ: %s", firstDifference(expected, actual))
	}
	if actual, expected := *m.at.Load(), *h.machine.at.Load(); actual != expected {
		t.Errorf("position is %+v, not %+v", actual, expected)
	}
	if actual, expected := m.access.policy.Load().Revision(), h.machine.access.policy.Load().Revision(); actual != expected {
		t.Errorf("policy %d is published, not %d", actual, expected)
	}
}

func TestHistoryIsTheSameInAnyBatches(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 1, 900)
	checkInvariants(t, h.machine)
	refused := 0
	for _, encoded := range h.results {
		var result proto.Result
		if err := pb.Unmarshal(encoded, &result); err != nil {
			t.Fatal(err)
		}
		if result.GetRefusal() != proto.Refusal_REFUSAL_UNSPECIFIED {
			refused++
		}
	}
	if refused < 60 || refused > 700 {
		t.Errorf("%d of %d commands were refused: the history tests little", refused, len(h.results))
	}
	for _, size := range []int{2, 7, 64, len(h.entries)} {
		m := openMachine(t, t.TempDir())
		var results [][]byte
		for batch := range slices.Chunk(h.entries, size) {
			part, err := m.Apply(batch)
			if err != nil {
				t.Fatal(err)
			}
			results = append(results, part...)
		}
		h.checkSame(t, m)
		if !slices.EqualFunc(results, h.results, bytes.Equal) {
			t.Errorf("batches of %d have other results", size)
		}
	}
}

func TestHistoriesKeepInvariants(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		checkInvariants(t, makeHistory(t, 100+seed, 250).machine)
	}
}

// TestCrashAtEveryEntry stops after each entry, starts again on what is on disk
// and replays the log from its beginning, as Raft does when it has lost track.
func TestCrashAtEveryEntry(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 2, 80)
	m := openMachine(t, t.TempDir())
	for i := range h.entries {
		if _, err := m.Apply(h.entries[i : i+1]); err != nil {
			t.Fatal(err)
		}
		again := openMachine(t, copyState(t, m, nil))
		if index, term := again.Applied(); index != h.entries[i].Index || term != h.entries[i].Term {
			t.Fatalf("applied is %d of term %d after %d of %d", index, term, h.entries[i].Index, h.entries[i].Term)
		}
		results, err := again.Apply(h.entries)
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(results[:i+1], func(r []byte) bool { return r != nil }); i >= 0 {
			t.Fatalf("entry %d was applied twice", i)
		}
		h.checkSame(t, again)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestApplyRefusesWhatItDoesNotUnderstand(t *testing.T) {
	command := &proto.Command{RequestId: requestID(1), Body: &proto.Command_DeleteTag{DeleteTag: &proto.DeleteTag{Repository: "app"}}}
	good := entryOf(t, 1, command).Data
	flipped := bytes.Clone(good)
	flipped[3] ^= 1
	unknown := func(command *proto.Command, into pb.Message) []byte {
		into.ProtoReflect().SetUnknown([]byte{0xf8, 0x3f, 1}) // field 1023, varint 1
		return entryOf(t, 1, command).Data
	}
	newer := pb.Clone(command).(*proto.Command)
	nested := &proto.Command{RequestId: requestID(1), Body: &proto.Command_PutManifest{PutManifest: &proto.PutManifest{
		Manifest: &proto.Manifest{Blobs: []*proto.Descriptor{{}, {}}},
	}}}
	for name, test := range map[string]struct {
		data     []byte
		expected error
	}{
		"bit flip":       {flipped, ErrCorrupt},
		"cut off":        {good[:len(good)-1], ErrCorrupt},
		"too short":      {good[:3], ErrCorrupt},
		"no protobuf":    {seal("", nil, []byte{7}), ErrCorrupt},
		"no body":        {entryOf(t, 1, &proto.Command{RequestId: requestID(1)}).Data, ErrUnknownCommand},
		"unknown body":   {unknown(newer, newer), ErrUnknownCommand},
		"unknown nested": {unknown(nested, nested.GetPutManifest().GetManifest().GetBlobs()[1]), ErrUnknownCommand},
	} {
		t.Run(name, func(t *testing.T) {
			m := openMachine(t, t.TempDir())
			before := dump(t, m)
			_, err := m.Apply([]consensus.Entry{
				entryOf(t, 1, &proto.Command{RequestId: requestID(2), Body: &proto.Command_InitCluster{InitCluster: &proto.InitCluster{ClusterId: "c"}}}),
				{Index: 2, Term: 1, Data: test.data},
			})
			if !errors.Is(err, test.expected) {
				t.Fatalf("error is %v, not %v", err, test.expected)
			}
			if _, err := m.Apply([]consensus.Entry{{Index: 1, Term: 1, Data: good}}); !errors.Is(err, ErrClosed) || !errors.Is(err, test.expected) {
				t.Errorf("the machine went on after a failure: %v", err)
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			again := openMachine(t, m.cfg.Dir)
			if index, _ := again.Applied(); index != 0 || dump(t, again) != before {
				t.Errorf("half of a batch was applied, up to log index %d", index)
			}
		})
	}
}

func TestDivergedNodeStops(t *testing.T) {
	h := makeHistory(t, 3, 60)
	checkpoint := func(previous uint64, hash []byte) error {
		h.last++
		_, err := h.machine.Apply([]consensus.Entry{entryOf(t, h.last, &proto.Command{
			RequestId: requestID(h.last + 1000),
			Body:      &proto.Command_Checkpoint{Checkpoint: &proto.Checkpoint{PreviousIndex: previous, PreviousHash: hash}},
		})})
		return err
	}
	if err := checkpoint(0, nil); err != nil {
		t.Fatal(err)
	}
	index, hash := h.machine.Checkpoint()
	if index != h.last {
		t.Fatalf("checkpoint is at log index %d, not %d", index, h.last)
	}
	if err := checkpoint(index, hash); err != nil {
		t.Fatalf("the same state: %v", err)
	}
	other := bytes.Repeat([]byte{1}, stateHashBytes)
	if err := checkpoint(index, other); err != nil {
		t.Fatalf("a checkpoint that is not the newest: %v", err)
	}
	index, _ = h.machine.Checkpoint()
	if err := h.machine.Sync(); err != nil { // else the log would have it applied anew, and all of it before
		t.Fatal(err)
	}
	if err := checkpoint(index, other); !errors.Is(err, ErrDiverged) {
		t.Fatalf("another state: %v", err)
	}
	if err := h.machine.Close(); err != nil {
		t.Fatal(err)
	}
	h.machine = openMachine(t, h.machine.cfg.Dir)
	h.last--
	if err := checkpoint(index, other); !errors.Is(err, ErrDiverged) {
		t.Fatalf("after a restart: %v", err)
	}
}

func TestMajorityReport(t *testing.T) {
	a, b := bytes.Repeat([]byte{1}, stateHashBytes), bytes.Repeat([]byte{2}, stateHashBytes)
	for name, test := range map[string]struct {
		members  int
		reports  []CheckpointReport
		expected uint64
	}{
		"none":               {3, nil, 0},
		"one node":           {1, []CheckpointReport{{5, a}}, 5},
		"two differ":         {2, []CheckpointReport{{5, a}, {5, b}}, 0},
		"two of three":       {3, []CheckpointReport{{5, a}, {5, b}, {5, a}}, 5},
		"one silent":         {3, []CheckpointReport{{5, a}, {5, a}}, 5},
		"too many silent":    {4, []CheckpointReport{{5, a}, {5, a}}, 0},
		"some are behind":    {3, []CheckpointReport{{5, a}, {9, b}, {9, b}}, 9},
		"most are behind":    {3, []CheckpointReport{{5, a}, {9, b}, {5, a}}, 5},
		"without checkpoint": {3, []CheckpointReport{{0, a}, {0, a}, {0, a}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if actual := majorityReport(test.members, test.reports); actual.LogIndex != test.expected {
				t.Errorf("majority is at log index %d, not %d", actual.LogIndex, test.expected)
			}
		})
	}
}

func TestRequestsAreForgottenInOrder(t *testing.T) {
	m := openMachine(t, t.TempDir())
	apply := func(index uint64, id uint64) {
		t.Helper()
		_, err := m.Apply([]consensus.Entry{entryOf(t, index, &proto.Command{
			RequestId: requestID(id), Body: &proto.Command_DeleteTag{DeleteTag: &proto.DeleteTag{Repository: "app"}},
		})})
		if err != nil {
			t.Fatal(err)
		}
	}
	remembered := func() (ids []string) {
		t.Helper()
		err := m.view(func(v view) (err error) {
			ids, _, err = v.rests(bucketRequests, span{}, 1000)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	for i := range uint64(6) {
		apply(i+1, i)
	}
	apply(1+requestWindow, 6)
	if ids := remembered(); len(ids) != 7 {
		t.Errorf("within the window: %q", ids)
	}
	apply(2+requestWindow, 7)
	if ids := remembered(); len(ids) != 7 || slices.Contains(ids, string(requestID(0))) {
		t.Errorf("one is behind the window: %q", ids)
	}
	apply(1000+requestWindow, 8)
	apply(1001+requestWindow, 9)
	if ids := remembered(); len(ids) != 4 {
		t.Errorf("all but four are behind the window: %q", ids)
	}
	checkInvariants(t, m)
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 4, 200)
	check := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, harm := range map[string]func(content []byte) []byte{
		"no database": func([]byte) []byte { return []byte("hello") },
		"zeroes":      func([]byte) []byte { return make([]byte, 64<<10) },
		"first half":  func(content []byte) []byte { return content[:len(content)/2] },
		"last byte":   func(content []byte) []byte { return content[:len(content)-1] },
		"roots only":  func(content []byte) []byte { return content[:2*pageBytes] },
		"no root":     func(content []byte) []byte { return content[:100] },
	} {
		t.Run(name, func(t *testing.T) {
			m, err := OpenMachine(MachineConfig{Dir: copyState(t, h.machine, harm)})
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v, not %v", err, ErrCorrupt)
			}
			if err == nil {
				check(t, m.Close())
			}
		})
	}
	t.Run("older format", func(t *testing.T) {
		dir := copyState(t, h.machine, nil)
		db, err := bolt.Open(filepath.Join(dir, stateFile), 0o600, nil)
		check(t, err)
		check(t, db.Update(func(tx *bolt.Tx) error {
			key, older := []byte(keyFormat), binary.BigEndian.AppendUint64(nil, formatVersion-1)
			return errors.Join(
				tx.Bucket([]byte(bucketMachine)).Put(key, seal(bucketMachine, key, older)), tx.DeleteBucket([]byte(bucketExtentContents)),
			)
		}))
		check(t, db.Close())
		if _, err := OpenMachine(MachineConfig{Dir: dir}); errors.Is(err, ErrCorrupt) || err == nil || !strings.Contains(err.Error(), fmt.Sprintf("has format %d", formatVersion-1)) {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		m := openMachine(t, t.TempDir())
		if _, err := OpenMachine(MachineConfig{Dir: m.cfg.Dir}); !errors.Is(err, ErrLocked) {
			t.Errorf("error is %v, not %v", err, ErrLocked)
		}
	})
	t.Run("leftover", func(t *testing.T) {
		dir := t.TempDir()
		check(t, os.WriteFile(filepath.Join(dir, incomingFile), []byte("half of a state"), 0o600))
		openMachine(t, dir)
		if _, err := os.Stat(filepath.Join(dir, incomingFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("half of a state is still there: %v", err)
		}
	})
}
