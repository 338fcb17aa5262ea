package cluster

import (
	"encoding/json"
	"testing"
)

// A scrub counts only if each node has told of a pass that has begun since.
func TestSum(t *testing.T) {
	parse := func(text string) map[string]scrubbed {
		var told []scrubbed
		if err := json.Unmarshal([]byte(text), &told); err != nil {
			t.Fatal(err)
		}
		byNode := make(map[string]scrubbed)
		for _, one := range told {
			byNode[one.Node] = one
		}
		return byNode
	}
	const (
		n1  = `{"node":"n1","running":false,"last":{"started":"2026-01-02T03:04:05Z","shards":5,"bytes":9,"damaged":1,"missing":2}}`
		n2  = `{"node":"n2","running":false,"last":{"started":"2026-01-02T03:04:06Z","shards":6,"bytes":9,"damaged":0,"missing":1}}`
		old = `{"node":"n2","running":false,"last":{"started":"2026-01-02T03:04:06+00:00","shards":6,"bytes":9,"damaged":0,"missing":0}}`
	)
	for name, test := range map[string]struct {
		before, after string
		ok            bool
	}{
		"the first time":   {`[]`, `[` + n1 + `,` + n2 + `]`, true},
		"again":            {`[{"node":"n2","last":{"started":"2026-01-02T02:00:00Z"}}]`, `[` + n1 + `,` + n2 + `]`, true},
		"one is not there": {`[]`, `[` + n1 + `]`, false},
		"one is silent":    {`[]`, `[` + n1 + `,{"node":"n2","error":"no answer","running":false}]`, false},
		"one goes on":      {`[]`, `[` + n1 + `,{"node":"n2","running":true}]`, false},
		"one never has":    {`[]`, `[` + n1 + `,{"node":"n2","running":false}]`, false},
		"one did not hear": {`[` + old + `]`, `[` + n1 + `,` + n2 + `]`, false},
	} {
		found, err := sum([]string{"n1", "n2"}, parse(test.before), parse(test.after))
		if (err == nil) != test.ok || test.ok && found != (Found{Shards: 11, Damaged: 1, Missing: 3}) {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
	}
}
