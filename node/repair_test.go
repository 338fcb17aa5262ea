package node

import (
	"net/url"
	"testing"

	pb "google.golang.org/protobuf/proto"

	atoll "github.com/atollregistry/atoll/proto"
)

func TestSettingsEdits(t *testing.T) {
	before := &atoll.Settings{RepairBytesPerSecond: 1, RepairConcurrency: 2}
	for query, want := range map[string]*atoll.Settings{
		"":                    {RepairBytesPerSecond: 1, RepairConcurrency: 2},
		"bytes-per-second=0":  {RepairConcurrency: 2},
		"concurrency=7":       {RepairBytesPerSecond: 1, RepairConcurrency: 7},
		"reencode=true":       {RepairBytesPerSecond: 1, RepairConcurrency: 2, Reencode: true},
		"rebalance-paused=1":  {RepairBytesPerSecond: 1, RepairConcurrency: 2, RebalancePaused: true},
		"concurrency=-1":      nil,
		"bytes-per-second=1k": nil,
		"reencode=yes":        nil,
		"rate=1":              nil,
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		edits, err := settingsEdits(values)
		if err != nil || want == nil {
			if (err == nil) == (want == nil) {
				t.Errorf("%q: %v", query, err)
			}
			continue
		}
		got := pb.Clone(before).(*atoll.Settings)
		for _, edit := range edits {
			edit(got)
		}
		if !pb.Equal(got, want) {
			t.Errorf("%q makes of it %v, want %v", query, got, want)
		}
	}
}
