package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/node"
)

func TestPrintCollection(t *testing.T) {
	collection := &node.Collection{
		Garbage: []node.Garbage{
			{Kind: "untagged manifest", Kept: true},
			{Kind: "unreferenced blob", Due: 3, DueBytes: 3 << 30, Later: 1, LaterBytes: 1536, Names: []string{"app@sha256:1", "app@sha256:2"}},
			{Kind: "upload"},
		},
		DryRun: true,
	}
	names := "unreferenced blob app@sha256:1\nunreferenced blob app@sha256:2\nunreferenced blob: 1 more\n"
	table := `WHAT               DUE   BYTES    LATER  BYTES
untagged manifest  kept
unreferenced blob  3     3.0 GiB  1      1.5 KiB
upload             0     0 B      0      0 B
`
	for _, test := range []struct {
		dryRun  bool
		dropped int
		verdict string
	}{{true, 0, "dry run: nothing was dropped\n"}, {false, 6, "dropped 6 records\n"}} {
		collection.DryRun, collection.Dropped = test.dryRun, test.dropped
		var out bytes.Buffer
		if err := printCollection(&out, collection); err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(out.String()) {
			lines = append(lines, strings.TrimRight(line, " \n")+"\n")
		}
		if got := strings.Join(lines, ""); got != names+table+test.verdict {
			t.Errorf("printed\n%s\nwant\n%s", got, names+table+test.verdict)
		}
	}
}
