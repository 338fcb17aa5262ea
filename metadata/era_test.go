package metadata

import (
	"errors"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// An era ends when it has lasted for its time, once, whoever finds that it has.
func TestEraEndsAfterItsTime(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	want := func(era uint64) {
		t.Helper()
		_, seen, err := s.LiveShards(t.Context(), nil)
		if err != nil || seen != era || s.Era() != era {
			t.Errorf("it is era %d, here %d (%v), not %d", seen, s.Era(), err, era)
		}
	}
	if err := s.AdvanceEra(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	want(0)
	if err := s.AdvanceEra(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	want(1)
	if err := s.AdvanceEra(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	want(1)
	// Changes of something else do not begin its time anew.
	before := log.machine.eraSeen.Load().since
	joinNodes(t, s, "n1")
	if after := log.machine.eraSeen.Load().since; after != before {
		t.Error("the era's time began anew")
	}
}

// Whoever records an extent too late is told so, and can do it with a new one.
func TestLateExtentIsRefused(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1")
	commit := func(content string, era uint64) error {
		e := extentOf(content, 7, "n1")
		e.Era = era
		return s.CommitBlob(t.Context(), &proto.CommitBlob{
			Repository: "app", Digest: digestOf(content), Size: 7, Extents: []*proto.Extent{e},
		})
	}
	stored := s.Era()
	for range erasUntilLate - 1 {
		if err := s.AdvanceEra(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := commit("in time", stored); err != nil {
		t.Error(err)
	}
	if err := s.AdvanceEra(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := commit("late", stored); !errors.Is(err, ErrExtentLate) {
		t.Errorf("error is %v", err)
	}
	if err := commit("late", s.Era()); err != nil {
		t.Error(err)
	}
	checkInvariants(t, log.machine)
}

// TestLateMoveIsLeftOut: a node that was held up between rebuilding a shard and saying
// so may have swept it meanwhile.
func TestLateMoveIsLeftOut(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1", "n2", "n3")
	pushBlob(t, s, "app", "x", "n1", "n2")
	move := func(from, to string, era uint64) int {
		moved, err := s.MoveShards(t.Context(), []*proto.ShardMove{{ExtentId: extentOf("x", 7).GetId(), ShardNumber: 1, From: from, To: to, Era: era}})
		if err != nil {
			t.Fatal(err)
		}
		return moved
	}
	rebuilt := s.Era()
	for range erasUntilLate {
		if err := s.AdvanceEra(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if moved := move("n2", "n3", rebuilt); moved != 0 {
		t.Error("a move of two eras ago was recorded")
	}
	if moved := move("n2", "n3", s.Era()-1); moved != 1 {
		t.Error("a move of the last era was not recorded")
	}
	checkInvariants(t, log.machine)
}
