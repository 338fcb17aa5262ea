package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

func putOf(repository, content string, tags ...string) *proto.PutManifest {
	return &proto.PutManifest{Repository: repository, Manifest: manifestOf(content), Tags: tags}
}

// replaceAll changes all occurrences of old in content.
func replaceAll(t testing.TB, content, old []byte, change func(found []byte)) []byte {
	t.Helper()
	count := 0
	for rest := content; ; count++ {
		i := bytes.Index(rest, old)
		if i < 0 {
			break
		}
		change(rest[i : i+len(old)])
		rest = rest[i+len(old):]
	}
	if count == 0 {
		t.Fatalf("%q is not there", old)
	}
	return content
}

// troubledLog is a log that fails as a test wants.
type troubledLog struct {
	localLog
	// proposed are the commands that were proposed.
	proposed [][]byte
	// propose answers the nth proposal, counted from 0; deliver puts it in the log.
	propose func(ctx context.Context, n int, deliver func() ([]byte, error)) ([]byte, error)
	// readIndex answers the nth read index.
	readIndex func(ctx context.Context, n int) error
	reads     int
}

func (l *troubledLog) Propose(ctx context.Context, command []byte) ([]byte, uint64, error) {
	l.proposed = append(l.proposed, bytes.Clone(command))
	answer, err := l.propose(ctx, len(l.proposed)-1, func() ([]byte, error) {
		answer, _, err := l.localLog.Propose(ctx, command)
		return answer, err
	})
	return answer, l.last, err
}

func (l *troubledLog) ReadIndex(ctx context.Context) error {
	l.reads++
	if l.readIndex == nil {
		return nil
	}
	return l.readIndex(ctx, l.reads-1)
}

func troubledStore(t *testing.T, cfg StoreConfig) (*Store, *troubledLog) {
	t.Helper()
	log := &troubledLog{localLog: localLog{machine: openMachine(t, t.TempDir())}}
	return NewStore(log.machine, log, cfg), log
}

func TestWritesUnderTrouble(t *testing.T) {
	lost := errors.New("connection lost")
	unknown := fmt.Errorf("%w: %w", consensus.ErrOutcomeUnknown, lost)
	type deliver = func() ([]byte, error)
	for name, test := range map[string]struct {
		propose   func(ctx context.Context, n int, deliver deliver) ([]byte, error)
		expected  error
		proposals int // 0: several
		applied   bool
	}{
		"all is well": {
			propose:  func(_ context.Context, _ int, deliver deliver) ([]byte, error) { return deliver() },
			expected: nil, proposals: 1, applied: true,
		},
		"no leader": {
			propose:  func(context.Context, int, deliver) ([]byte, error) { return nil, consensus.ErrNoLeader },
			expected: ErrUnavailable, proposals: 1,
		},
		"answer lost": {
			propose: func(_ context.Context, n int, deliver deliver) ([]byte, error) {
				answer, err := deliver()
				if n < 2 {
					return nil, unknown
				}
				return answer, err
			},
			expected: nil, proposals: 3, applied: true,
		},
		"lost on the way, then no leader for a while": {
			propose: func(_ context.Context, n int, deliver deliver) ([]byte, error) {
				switch n {
				case 0:
					return nil, unknown
				case 1:
					return nil, consensus.ErrNoLeader
				}
				return deliver()
			},
			expected: nil, proposals: 3, applied: true,
		},
		"answer lost, then no leader for ever": {
			propose: func(_ context.Context, n int, deliver deliver) ([]byte, error) {
				if n == 0 {
					_, err := deliver()
					return nil, errors.Join(unknown, err)
				}
				return nil, consensus.ErrNoLeader
			},
			expected: ErrOutcomeUnknown, applied: true,
		},
		"hangs": {
			propose: func(ctx context.Context, _ int, _ deliver) ([]byte, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
			expected: ErrOutcomeUnknown, proposals: 1,
		},
		"this node is closed": {
			propose:  func(context.Context, int, deliver) ([]byte, error) { return nil, consensus.ErrClosed },
			expected: ErrOutcomeUnknown, proposals: 1,
		},
		"answer makes no sense": {
			propose:  func(context.Context, int, deliver) ([]byte, error) { return []byte{7}, nil },
			expected: ErrOutcomeUnknown, proposals: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, log := troubledStore(t, StoreConfig{WriteTimeout: 300 * time.Millisecond})
			log.propose = test.propose
			err := s.PutManifest(t.Context(), putOf("app", "m1", "v1"))
			if !errors.Is(err, test.expected) || (test.expected == nil && err != nil) {
				t.Errorf("error is %v, not %v", err, test.expected)
			}
			if test.proposals != 0 && len(log.proposed) != test.proposals {
				t.Errorf("%d proposals, not %d", len(log.proposed), test.proposals)
			}
			if slices.ContainsFunc(log.proposed, func(p []byte) bool { return !bytes.Equal(p, log.proposed[0]) }) {
				t.Error("a retry has other bytes")
			}
			if applied := strings.Contains(dump(t, log.machine, "tags"), "v1"); applied != test.applied {
				t.Errorf("was carried out: %t", applied)
			}
		})
	}
}

func TestRetryDoesNotUndoALaterWrite(t *testing.T) {
	s, log := troubledStore(t, StoreConfig{})
	other := NewStore(log.machine, &log.localLog, StoreConfig{})
	log.propose = func(_ context.Context, n int, deliver func() ([]byte, error)) ([]byte, error) {
		answer, err := deliver()
		if n == 0 {
			if err := other.PutManifest(t.Context(), putOf("app", "m2", "v1")); err != nil {
				t.Fatal(err)
			}
			return nil, consensus.ErrOutcomeUnknown
		}
		return answer, err
	}
	if err := s.PutManifest(t.Context(), putOf("app", "m1", "v1")); err != nil {
		t.Fatal(err)
	}
	manifest, err := s.ManifestByTag(t.Context(), "app", "v1")
	if err != nil || string(manifest.GetContent()) != "m2" {
		t.Errorf("tag points at %q, not at the later write (%v)", manifest.GetContent(), err)
	}
}

func TestWriteOfAGoneClient(t *testing.T) {
	s, log := troubledStore(t, StoreConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	log.propose = func(ctx context.Context, _ int, deliver func() ([]byte, error)) ([]byte, error) {
		cancel()
		return nil, ctx.Err()
	}
	if err := s.DeleteTag(ctx, "app", "v1", nil); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("gone meanwhile: %v", err)
	}
	if err := s.DeleteTag(ctx, "app", "v1", nil); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("gone before: %v", err)
	}
	if len(log.proposed) != 1 {
		t.Errorf("%d proposals", len(log.proposed))
	}
}

// TestWriteOnANodeFarBehind: the node's state is so old that what it stamps is
// too old for the log. It catches up and stamps again.
func TestWriteOnANodeFarBehind(t *testing.T) {
	for name, test := range map[string]struct {
		first    error
		expected error
	}{
		"known":   {nil, nil},
		"unknown": {consensus.ErrOutcomeUnknown, ErrOutcomeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			s, log := troubledStore(t, StoreConfig{})
			log.propose = func(_ context.Context, n int, deliver func() ([]byte, error)) ([]byte, error) {
				if n == 0 {
					log.last += 2 * requestWindow
					if test.first != nil {
						return nil, test.first
					}
				}
				return deliver()
			}
			err := s.PutManifest(t.Context(), putOf("app", "m1", "v1"))
			if !errors.Is(err, test.expected) || (test.expected == nil && (err != nil || log.reads != 1)) {
				t.Errorf("error is %v, not %v, after %d waits", err, test.expected, log.reads)
			}
		})
	}
}

func TestTooLargeCommandIsRefused(t *testing.T) {
	s, log := troubledStore(t, StoreConfig{})
	put := putOf("app", "m1")
	put.Manifest.Annotations = map[string]string{"a": strings.Repeat("x", maxCommandBytes)}
	if err := s.PutManifest(t.Context(), put); !errors.Is(err, ErrInvalid) || len(log.proposed) > 0 {
		t.Errorf("error is %v after %d proposals", err, len(log.proposed))
	}
}

func TestReadsWithoutQuorum(t *testing.T) {
	t.Parallel()
	s, log := troubledStore(t, StoreConfig{LocalReadAfter: 20 * time.Millisecond, ReadTimeout: 200 * time.Millisecond})
	local := NewStore(log.machine, &log.localLog, StoreConfig{})
	joinNodes(t, local, "n1")
	digest := pushBlob(t, local, "app", "layer", "n1")
	if err := local.PutManifest(t.Context(), putOf("app", "m1", "v1")); err != nil {
		t.Fatal(err)
	}
	hang := func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
	refuse := func(context.Context, int) error { return consensus.ErrNoQuorum }
	for name, readIndex := range map[string]func(context.Context, int) error{"hangs": hang, "is refused": refuse} {
		log.readIndex = readIndex
		for what, test := range map[string]struct {
			read     func(ctx context.Context) error
			expected error
		}{
			"blob there": {func(ctx context.Context) error { _, err := s.Blob(ctx, "app", digest); return err }, nil},
			"blob not there": {func(ctx context.Context) error {
				_, err := s.Blob(ctx, "app", digestOf("x"))
				return err
			}, ErrUnavailable},
			"manifest there": {func(ctx context.Context) error {
				_, err := s.Manifest(ctx, "app", digestOf("m1"))
				return err
			}, nil},
			"repository not there": {func(ctx context.Context) error {
				_, err := s.Manifest(ctx, "nothing", digestOf("m1"))
				return err
			}, ErrUnavailable},
			"tag":     {func(ctx context.Context) error { _, err := s.ManifestByTag(ctx, "app", "v1"); return err }, ErrUnavailable},
			"tags":    {func(ctx context.Context) error { _, _, err := s.Tags(ctx, "app", "", 1); return err }, ErrUnavailable},
			"upload":  {func(ctx context.Context) error { _, err := s.Upload(ctx, "app", "x", ""); return err }, ErrUnavailable},
			"extents": {func(ctx context.Context) error { _, _, err := s.LiveShards(ctx, nil); return err }, ErrUnavailable},
		} {
			ctx, stale := WatchStale(t.Context())
			if err := test.read(ctx); !errors.Is(err, test.expected) || (test.expected == nil && err != nil) {
				t.Errorf("read index %s, %s: error is %v, not %v", name, what, err, test.expected)
			}
			if stale.Happened() != (test.expected == nil) {
				t.Errorf("read index %s, %s: stale is %v", name, what, stale.Happened())
			}
		}
	}
	// Whoever prefers an old answer to none gets what is here, and is told so.
	available := NewStore(log.machine, log, StoreConfig{LocalReadAfter: 20 * time.Millisecond, ReadTimeout: 200 * time.Millisecond, AvailableReads: true})
	for what, read := range map[string]func(ctx context.Context) error{
		"tag":          func(ctx context.Context) error { _, err := available.ManifestByTag(ctx, "app", "v1"); return err },
		"tags":         func(ctx context.Context) error { _, _, err := available.Tags(ctx, "app", "", 1); return err },
		"repositories": func(ctx context.Context) error { _, _, err := available.Repositories(ctx, "", 1); return err },
		"referrers": func(ctx context.Context) error {
			_, _, err := available.Referrers(ctx, "app", digest, "", 1)
			return err
		},
	} {
		ctx, stale := WatchStale(t.Context())
		if err := read(ctx); err != nil || !stale.Happened() {
			t.Errorf("available reads, %s: error is %v, stale is %v", what, err, stale.Happened())
		}
	}
	if _, err := available.ManifestByTag(t.Context(), "app", "v2"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("available reads, a tag that is not here: error is %v, not %v", err, ErrUnavailable)
	}
	watched, stale := WatchStale(t.Context())
	if _, err := local.Blob(watched, "app", digest); err != nil || stale.Happened() {
		t.Errorf("with a quorum: error is %v, stale is %v", err, stale.Happened())
	}
	// An election that takes longer than the short wait: absence is waited for.
	log.reads = 0
	log.readIndex = func(ctx context.Context, n int) error {
		if n == 0 {
			return hang(ctx, n)
		}
		return nil
	}
	if _, err := s.Blob(t.Context(), "app", digestOf("x")); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("after an election: error is %v, not %v", err, ErrBlobUnknown)
	}
}

func TestReadsByDigestSeeDeletions(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1")
	digest := pushBlob(t, s, "app", "layer", "n1")
	if err := s.PutManifest(t.Context(), putOf("app", "m1", "v1")); err != nil {
		t.Fatal(err)
	}
	blob, err := s.Blob(t.Context(), "app", digest)
	if err != nil || blob.GetSize() != 7 || len(blob.GetExtents()) != 1 {
		t.Errorf("blob is %v (%v)", blob, err)
	}
	if err := errors.Join(s.DeleteBlob(t.Context(), "app", digest), s.DeleteManifest(t.Context(), "app", digestOf("m1"), nil)); err != nil {
		t.Fatal(err)
	}
	_, blobErr := s.Blob(t.Context(), "app", digest)
	_, manifestErr := s.Manifest(t.Context(), "app", digestOf("m1"))
	_, tagErr := s.ManifestByTag(t.Context(), "app", "v1")
	_, repositoryErr := s.Manifest(t.Context(), "nothing", digestOf("m1"))
	if !errors.Is(blobErr, ErrBlobUnknown) || !errors.Is(manifestErr, ErrManifestUnknown) ||
		!errors.Is(tagErr, ErrManifestUnknown) || !errors.Is(repositoryErr, ErrRepositoryUnknown) {
		t.Errorf("errors are %v, %v, %v, %v", blobErr, manifestErr, tagErr, repositoryErr)
	}
	checkInvariants(t, log.machine)
}

func TestUploadThroughTheStore(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	ctx := t.Context()
	joinNodes(t, s, "n1", "n2")
	upload, err := createUpload(ctx, s, "app", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	extend := &proto.ExtendUpload{
		Id: upload.GetId(), Repository: "app", Extents: []*proto.Extent{extentOf("e1", 10, "n1", "n2")},
		HashStates: []*proto.HashState{{Algorithm: "sha256", State: []byte("after 10")}},
	}
	if err := s.ExtendUpload(ctx, extend); err != nil {
		t.Fatal(err)
	}
	size := &UploadSizeError{}
	if err := s.ExtendUpload(ctx, extend); !errors.Is(err, ErrUploadSize) || !errors.As(err, &size) || size.Size != 10 {
		t.Errorf("second writer's error is %v", err)
	}
	upload, err = s.Upload(ctx, "app", upload.GetId(), "")
	if err != nil || upload.GetSize() != 10 || len(upload.GetExtents()) != 1 || string(upload.GetHashStates()[0].GetState()) != "after 10" {
		t.Errorf("upload is %v (%v)", upload, err)
	}
	if _, err := s.Upload(ctx, "other", upload.GetId(), ""); !errors.Is(err, ErrUploadUnknown) {
		t.Errorf("upload of another repository: %v", err)
	}
	holder := extend.GetExtents()[0].GetHolders()[0]
	live, _, err := s.LiveShards(ctx, []*proto.ShardRef{
		{ExtentId: extend.GetExtents()[0].GetId(), NodeId: holder},
		{ExtentId: extend.GetExtents()[0].GetId(), NodeId: "n9"},
		{ExtentId: extend.GetExtents()[0].GetId(), NodeId: holder, ShardNumber: 9},
		{ExtentId: bytes.Repeat([]byte{1}, 16), NodeId: holder},
	})
	if err != nil || !slices.Equal(live, []bool{true, false, false, false}) {
		t.Errorf("live shards are %v (%v)", live, err)
	}
	commit := &proto.CommitBlob{Repository: "app", Digest: digestOf("x"), Size: 10, UploadId: upload.GetId(), ExpectedSize: 10}
	for range 2 {
		if err := s.CommitBlob(ctx, commit); err != nil {
			t.Fatal(err)
		}
	}
	upload, err = s.Upload(ctx, "app", upload.GetId(), "")
	if err != nil || upload.GetFinishedDigest() != digestOf("x") || len(upload.GetExtents()) != 0 {
		t.Errorf("finished upload is %v (%v)", upload, err)
	}
	if err := s.CancelUpload(ctx, "app", upload.GetId(), ""); !errors.Is(err, ErrUploadFinished) {
		t.Errorf("cancel of a finished upload: %v", err)
	}
	if err := s.MountBlob(ctx, "copy", "app", digestOf("x")); err != nil {
		t.Error(err)
	}
	put := putOf("copy", "m1")
	put.Manifest.Blobs = []*proto.Descriptor{{Digest: digestOf("x")}, {Digest: digestOf("y")}}
	missing := &ReferenceUnknownError{}
	if err := s.PutManifest(ctx, put); !errors.Is(err, ErrReferenceUnknown) || !errors.As(err, &missing) ||
		!slices.Equal(missing.Digests, []string{digestOf("y")}) {
		t.Errorf("manifest with a missing blob: %v", err)
	}
	checkInvariants(t, log.machine)
}

func TestManifestStoredAsBlob(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1")
	put := putOf("app", "m1", "v1")
	put.Manifest.Content, put.Manifest.StoredAsBlob = nil, true
	put.Extents = []*proto.Extent{extentOf("e1", 2, "n1")}
	if err := errors.Join(s.PutManifest(t.Context(), put), s.PutManifest(t.Context(), putOf("app", "m2"))); err != nil {
		t.Fatal(err)
	}
	manifest, err := s.ManifestByTag(t.Context(), "app", "v1")
	if err != nil || !manifest.GetStoredAsBlob() || len(manifest.GetContent()) > 0 {
		t.Errorf("manifest is %v (%v)", manifest, err)
	}
	blob, err := s.ManifestBlob(t.Context(), "app", manifest.GetDigest())
	if err != nil || blob.GetSize() != 2 || len(blob.GetExtents()) != 1 {
		t.Errorf("its blob is %v (%v)", blob, err)
	}
	if _, err := s.ManifestBlob(t.Context(), "app", digestOf("m2")); !errors.Is(err, ErrManifestUnknown) {
		t.Errorf("manifest that is not stored as a blob: %v", err)
	}
	if _, err := s.Blob(t.Context(), "app", manifest.GetDigest()); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("manifest read as a blob: %v", err)
	}
}

func TestPages(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	ctx := t.Context()
	var expected []string
	for _, repository := range []string{"a", "a/b", "a-b", "aa"} {
		for _, tag := range []string{"v1", "v10", "v2", "A", "_"} {
			if err := s.PutManifest(ctx, putOf(repository, "m1", tag)); err != nil {
				t.Fatal(err)
			}
			expected = append(expected, repository+":"+tag)
		}
	}
	slices.Sort(expected)
	for limit := 1; limit < 7; limit++ {
		var actual []string
		everyPage(t, limit, func(after string) ([]string, bool, error) { return s.Repositories(ctx, after, limit) }, func(repository string) {
			everyPage(t, limit, func(after string) ([]string, bool, error) { return s.Tags(ctx, repository, after, limit) }, func(tag string) {
				actual = append(actual, repository+":"+tag)
			})
		})
		slices.Sort(actual)
		if !slices.Equal(actual, expected) {
			t.Errorf("pages of %d have %q, not %q", limit, actual, expected)
		}
	}
	if tags, more, err := s.Tags(ctx, "a", "", 0); len(tags) != 0 || !more || err != nil {
		t.Errorf("page of 0: %q %t %v", tags, more, err)
	}
	if tags, more, err := s.Tags(ctx, "a", "zz", 5); len(tags) != 0 || more || err != nil {
		t.Errorf("behind the end: %q %t %v", tags, more, err)
	}
	if _, _, err := s.Tags(ctx, "nothing", "", 5); !errors.Is(err, ErrRepositoryUnknown) {
		t.Errorf("unknown repository: %v", err)
	}
	if err := s.DeleteManifest(ctx, "a", digestOf("m1"), nil); err != nil {
		t.Fatal(err)
	}
	if tags, more, err := s.Tags(ctx, "a", "", 5); len(tags) != 0 || more || err != nil {
		t.Errorf("repository without tags: %q %t %v", tags, more, err)
	}
}

// everyPage calls visit for each name, page by page, and checks their order.
func everyPage(t *testing.T, limit int, page func(after string) ([]string, bool, error), visit func(name string)) {
	t.Helper()
	after := ""
	for more := true; more; {
		names, next, err := page(after)
		if err != nil || len(names) > limit || (next && len(names) < limit) {
			t.Fatalf("page after %q is %q, more: %t (%v)", after, names, next, err)
		}
		for _, name := range names {
			if name <= after {
				t.Fatalf("%q comes after %q", name, after)
			}
			after = name
			visit(name)
		}
		more = next
	}
}

func TestReferrers(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	var expected []string
	for i := range 5 {
		put := putOf("app", fmt.Sprintf("signature %d", i))
		put.Manifest.Subject, put.Manifest.ArtifactType = digestOf("image"), "signature"
		if err := s.PutManifest(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		expected = append(expected, put.GetManifest().GetDigest())
	}
	if err := s.DeleteManifest(t.Context(), "app", expected[2], nil); err != nil {
		t.Fatal(err)
	}
	expected = slices.Delete(expected, 2, 3)
	slices.Sort(expected)
	referrers, more, err := s.Referrers(t.Context(), "app", digestOf("image"), "", 3)
	if err != nil || !more {
		t.Fatal(more, err)
	}
	rest, more, err := s.Referrers(t.Context(), "app", digestOf("image"), referrers[2].GetDigest(), 3)
	if err != nil || more {
		t.Fatal(more, err)
	}
	referrers = append(referrers, rest...)
	var actual []string
	for _, referrer := range referrers {
		actual = append(actual, referrer.GetDigest())
		if referrer.GetArtifactType() != "signature" || len(referrer.GetContent()) > 0 {
			t.Errorf("referrer is %v", referrer)
		}
	}
	if !slices.Equal(actual, expected) {
		t.Errorf("referrers are %q, not %q", actual, expected)
	}
	if none, _, err := s.Referrers(t.Context(), "nothing", digestOf("image"), "", 3); err != nil || len(none) > 0 {
		t.Errorf("referrers in an unknown repository: %v (%v)", none, err)
	}
}

func TestNodesAreKnownAtOnce(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	if s.ClusterID() != "" || len(s.LocalNodes()) != 0 {
		t.Errorf("a new state has cluster %q and nodes %v", s.ClusterID(), s.LocalNodes())
	}
	if err := s.InitCluster(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.InitCluster(t.Context(), "c2"); !errors.Is(err, ErrClusterID) {
		t.Errorf("second cluster id: %v", err)
	}
	joinNodes(t, s, "n2", "n1")
	if err := s.SetNodeState(t.Context(), "n1", proto.NodeState_NODE_STATE_DRAINING); err != nil {
		t.Fatal(err)
	}
	check := func(s *Store) {
		t.Helper()
		nodes, err := s.Nodes(t.Context())
		if err != nil || len(nodes) != 2 || len(s.LocalNodes()) != 2 || s.ClusterID() != "c1" {
			t.Fatalf("cluster %q has nodes %v and %v (%v)", s.ClusterID(), nodes, s.LocalNodes(), err)
		}
		for _, list := range [][]*proto.Node{nodes, s.LocalNodes()} {
			if list[0].GetId() != "n1" || list[0].GetState() != proto.NodeState_NODE_STATE_DRAINING || list[1].GetId() != "n2" {
				t.Errorf("nodes are %v", list)
			}
		}
	}
	check(s)
	if err := log.machine.Close(); err != nil {
		t.Fatal(err)
	}
	log.machine = openMachine(t, log.machine.cfg.Dir)
	check(NewStore(log.machine, log, StoreConfig{}))
	if _, err := s.Nodes(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed machine answers: %v", err)
	}
}

// What a leader saw before it was paused, and another one led, does not count.
func TestLivenessOfAPausedLeader(t *testing.T) {
	clock := time.UnixMilli(1000)
	s, _ := openStore(t, StoreConfig{Now: func() time.Time { clock = clock.Add(time.Second); return clock }})
	joinNodes(t, s, "a")
	node := func() *proto.Node { return s.LocalNodes()[0] }
	record := func(liveness proto.Liveness) {
		t.Helper()
		if err := s.SetLiveness(t.Context(), node(), liveness); err != nil || node().GetLiveness() != liveness {
			t.Fatalf("%v: %v, it is %v", liveness, err, node().GetLiveness())
		}
	}
	record(proto.Liveness_LIVENESS_UNREACHABLE)
	seen := node()
	for _, since := range []proto.Liveness{proto.Liveness_LIVENESS_UNSPECIFIED, proto.Liveness_LIVENESS_UNREACHABLE} {
		record(since)
		if err := s.SetLiveness(t.Context(), seen, proto.Liveness_LIVENESS_DOWN); !errors.Is(err, ErrPrecondition) || node().GetLiveness() != since {
			t.Errorf("late word of a node that is %v: %v, now it is %v", since, err, node().GetLiveness())
		}
	}
	record(proto.Liveness_LIVENESS_DOWN)
}

func TestEveryRefusalIsAnError(t *testing.T) {
	for number, name := range proto.Refusal_name {
		refusal := proto.Refusal(number)
		err := refusalError(&proto.Result{Refusal: refusal, Detail: "it"})
		switch {
		case refusal == proto.Refusal_REFUSAL_UNSPECIFIED:
			if err != nil {
				t.Errorf("%s is %v", name, err)
			}
		case err == nil:
			t.Errorf("%s is no error", name)
		case errors.Is(err, ErrInvalid) && refusal != proto.Refusal_REFUSAL_INVALID:
			t.Errorf("%s has no error of its own", name)
		}
	}
	if err := refusalError(&proto.Result{Refusal: 1000}); err == nil {
		t.Error("a refusal of a newer version is no error")
	}
}

// A stored blob is found whatever repository has it, also when none does any more.
func TestStoredBlob(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "a")
	digest := pushBlob(t, s, "r", "x", "a")
	if err := s.DeleteBlob(t.Context(), "r", digest); err != nil {
		t.Fatal(err)
	}
	if blob, err := s.StoredBlob(t.Context(), digest); err != nil || blob.GetSize() != 7 || len(blob.GetExtents()) != 1 {
		t.Errorf("blob without a repository: %v %v", blob, err)
	}
	for _, digest := range []string{digestOf("y"), "", "a\x00b"} {
		if _, err := s.StoredBlob(t.Context(), digest); !errors.Is(err, ErrBlobUnknown) {
			t.Errorf("blob %q: %v", digest, err)
		}
	}
}
