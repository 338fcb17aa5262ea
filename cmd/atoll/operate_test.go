package main

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/atollregistry/atoll/node"
)

func TestPrintRemoval(t *testing.T) {
	lost := []node.LostBlob{{Digest: "sha256:aa", Bytes: 2048, Repositories: []string{"app", "base"}}}
	for _, test := range []struct {
		removal   node.Removal
		want, err string
	}{
		{removal: node.Removal{Node: "n2", Removed: true}, want: "node n2 is removed from the cluster\n", err: "<nil>"},
		{
			removal: node.Removal{Node: "n2", Refusal: "what only it has would be lost", Blobs: 3, Uploads: 1, Lost: lost},
			want:    "would be lost: sha256:aa, 2.0 KiB, in app, base\nwould be lost: 2 more blobs\nwould be lost: 1 uploads in progress\n",
			err:     "node n2 is not removed: what only it has would be lost",
		},
		{
			removal: node.Removal{Node: "n2", Removed: true, Blobs: 1, Lost: lost},
			want:    "lost: sha256:aa, 2.0 KiB, in app, base\nnode n2 is removed from the cluster\n", err: "<nil>",
		},
	} {
		var out bytes.Buffer
		err := printRemoval(&out, &test.removal)
		if got := fmt.Sprint(err); out.String() != test.want || got != test.err {
			t.Errorf("%+v: printed\n%s and %s; want\n%s and %s", test.removal, out.String(), got, test.want, test.err)
		}
	}
}

// A service manager can tell a node that was removed from one that failed.
func TestExitCode(t *testing.T) {
	for err, want := range map[error]int{fmt.Errorf("join: %w", node.ErrRemoved): 3, node.ErrFatal: 1} {
		if got := exitCode(err); got != want {
			t.Errorf("%v ends with %d, want %d", err, got, want)
		}
	}
}
