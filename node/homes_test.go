package node

import (
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/gateway"
	atoll "github.com/atollregistry/atoll/proto"
)

// Who is dead, closing, suspected, not ready or silent for a moment gets no
// clients.
func TestPeerIsPrompt(t *testing.T) {
	now := time.Now()
	well := func() *peer {
		return &peer{answered: now.Add(-time.Second), stats: &atoll.HeartbeatResponse{Ready: true}}
	}
	if !well().isPrompt(now) {
		t.Error("a node that is well gets no clients")
	}
	for name, change := range map[string]func(*peer){
		"never answered":             func(k *peer) { k.answered, k.stats = time.Time{}, nil },
		"silent, but healthy":        func(k *peer) { k.answered = now.Add(-promptFor) },
		"closing":                    func(k *peer) { k.stats.Closing = true },
		"not ready":                  func(k *peer) { k.stats.Ready = false },
		"suspected":                  func(k *peer) { k.suspectUntil = now.Add(time.Second) },
		"lost since its last answer": func(k *peer) { k.lostAt = now },
	} {
		k := well()
		if change(k); k.isPrompt(now) {
			t.Errorf("%s: gets clients", name)
		}
	}
}

func TestHomes(t *testing.T) {
	members := []*atoll.Node{
		{Id: "a", RedirectUrl: "http://a"}, {Id: "b", RedirectUrl: "http://b"}, {Id: "c", RedirectUrl: "http://c"}, {Id: "d"},
	}
	p := newPeers("a", nil, func() []*atoll.Node { return members }, zerolog.Nop())
	p.stats = func() *atoll.HeartbeatResponse { return &atoll.HeartbeatResponse{} }
	for _, member := range members[1:] {
		p.known[member.Id] = &peer{answered: time.Now(), stats: &atoll.HeartbeatResponse{}}
	}
	var silent []string
	h := homes{
		peers: p, members: p.members, serves: func(member *atoll.Node) bool { return !slices.Contains(silent, member.Id) },
		atHand: func(digest string, extents []*atoll.Extent) bool {
			return digest == "sha256:1" && slices.Contains(extents[0].Holders, "a")
		},
		keeps: func([]*atoll.Extent) bool { return false },
	}
	home := func(holders ...string) gateway.Home {
		return h.Home("sha256:1", []*atoll.Extent{{Holders: holders, Layout: &atoll.Layout{DataShards: 1}}})
	}
	self, b, nobody := gateway.Home{Self: true, AtHand: true}, gateway.Home{URL: "http://b"}, gateway.Home{}
	for _, c := range []struct {
		name    string
		holders []string
		silent  []string
		want    gateway.Home
	}{
		{"the one other holder", []string{"b"}, nil, b},
		{"this node", []string{"a"}, nil, self},
		{"no URL", []string{"d"}, nil, nobody},
		{"no URL or silent", []string{"d", "c"}, []string{"c"}, nobody},
		{"the one that is not silent", []string{"b", "c"}, []string{"c"}, b},
		{"this node, the others being silent", []string{"b", "c", "a"}, []string{"b", "c"}, self},
		{"no longer a member", []string{"e"}, nil, nobody},
	} {
		silent = c.silent
		if got := home(c.holders...); got != c.want {
			t.Errorf("%s: home is %+v, want %+v", c.name, got, c.want)
		}
	}
	members = members[2:] // without a and b
	if got := home("b"); got != nobody {
		t.Errorf("home is %+v, which was removed", got)
	}
}
