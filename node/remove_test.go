package node

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRefusalToRemove(t *testing.T) {
	for _, test := range []struct {
		name string
		c    removalCase
		// want and forced are words of the refusal, without and with --force; empty for
		// none.
		want, forced string
	}{
		{"gone", removalCase{shards: 9, voters: 2, answering: 2}, "", ""},
		{"drained", removalCase{alive: true, draining: true, voters: 2, answering: 2}, "", ""},
		{"alive and new", removalCase{alive: true, voters: 2, answering: 2}, "", ""},
		{"alive and full", removalCase{name: "n2", alive: true, shards: 9, voters: 2, answering: 2}, "holds 9 shards: run 'atoll drain n2 --wait' first", ""},
		{"drain under way", removalCase{name: "n2", alive: true, draining: true, shards: 9, voters: 2, answering: 2}, "still holds 9 shards: 'atoll drain n2 --wait' tells", ""},
		{"the last one", removalCase{alive: true}, "nothing would be left", "nothing would be left"},
		{"another is dead, three voters", removalCase{alive: true, voters: 2, answering: 1}, "no quorum", "no quorum"},
		{"another is dead, four voters", removalCase{voters: 3, answering: 2}, "", ""},
		{"another is dead, five voters", removalCase{voters: 4, answering: 3}, "", ""},
		{"two others are dead, five voters", removalCase{voters: 4, answering: 2}, "no quorum", "no quorum"},
		{"of two", removalCase{voters: 1, answering: 1}, "", ""},
	} {
		for force, want := range map[bool]string{false: test.want, true: test.forced} {
			got := test.c.refusal(force)
			if !strings.Contains(got, want) || (want == "") != (got == "") {
				t.Errorf("%s, force %v: %q, want %q", test.name, force, got, want)
			}
		}
	}
}

// What was not understood must pass neither for true nor for false.
func TestFlagOf(t *testing.T) {
	for query, want := range map[string]string{"": "false", "?force=true": "true", "?force=false": "false", "?force=yes": "error", "?force=tru": "error"} {
		flag, err := flagOf(httptest.NewRequest("POST", "/remove"+query, nil), "force")
		got := "false"
		switch {
		case err != nil:
			got = "error"
		case flag:
			got = "true"
		}
		if got != want {
			t.Errorf("%q is %s, want %s", query, got, want)
		}
	}
}
