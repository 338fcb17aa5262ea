package node

import (
	"errors"
	"testing"

	atoll "github.com/atollregistry/atoll/proto"
)

// Of two clusters that were one, the same gives way whichever of the two looks, and never
// both.
func TestSuperseded(t *testing.T) {
	parted := func(former string, term, index uint64, at int64) *atoll.Recovery {
		return &atoll.Recovery{FormerClusterId: former, LastTerm: term, LastIndex: index, NodeId: "n1", RecoveredUnixMs: at}
	}
	original, stranger, fresh := lineage{id: "a"}, lineage{id: "x"}, lineage{}
	recovered := lineage{"b", []*atoll.Recovery{parted("a", 2, 50, 1)}}
	again := lineage{"c", []*atoll.Recovery{parted("a", 2, 50, 1), parted("b", 4, 70, 2)}}
	later := lineage{"d", []*atoll.Recovery{parted("a", 2, 50, 9)}}
	more := lineage{"e", []*atoll.Recovery{parted("a", 2, 51, 9)}}
	newer := lineage{"f", []*atoll.Recovery{parted("a", 3, 7, 9)}}
	for _, test := range []struct {
		name       string
		gives, not lineage
	}{
		{"recovered from it", original, recovered},
		{"recovered from it twice", original, again},
		{"recovered from the recovered one", recovered, again},
		{"recovered with as much, and later", later, recovered},
		{"recovered with less", recovered, more},
		{"recovered in an earlier term", more, newer},
		{"descends from one that went on from less", again, more},
	} {
		if err := test.gives.superseded(test.not.answer()); !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s: it stays, with %v", test.name, err)
		}
		if err := test.not.superseded(test.gives.answer()); err != nil {
			t.Errorf("%s: the other one gives way as well: %v", test.name, err)
		}
		if !test.gives.isRelated(test.not.answer()) || !test.not.isRelated(test.gives.answer()) {
			t.Errorf("%s: they are not related", test.name)
		}
	}
	for _, l := range []lineage{original, recovered, again, stranger, fresh} {
		for _, other := range []lineage{l, stranger, fresh} {
			if err := l.superseded(other.answer()); err != nil || l.isRelated(other.answer()) {
				t.Errorf("%s gives way to %s: %v", l.id, other.id, err)
			}
		}
	}
}

func (l lineage) answer() *atoll.IdentifyResponse {
	return &atoll.IdentifyResponse{ClusterId: l.id, Recoveries: l.recoveries, Name: "n2"}
}
