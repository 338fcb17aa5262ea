package consensus

import (
	"testing"
	"time"

	"github.com/atollregistry/atoll/node/alloctest"
)

func BenchmarkHot(b *testing.B)    { alloctest.Bench(b, hotFunctions) }
func TestAllocations(t *testing.T) { alloctest.Check(t, hotFunctions) }

// hotFunctions are those of every write and read, on a cluster of one node. Between
// several nodes, heartbeats and the batches of what is replicated allocate as well, by
// the clock, and no count comes out the same twice: BenchmarkPropose shows their times.
func hotFunctions(t testing.TB) []alloctest.Function {
	c := form(t, 1, func(cfg *Config) { cfg.AutopilotInterval = time.Hour })
	leader, ctx := c.leader(), t.Context()
	command := make([]byte, 512)
	return []alloctest.Function{
		// Most are hashicorp/raft's and bbolt's: 138 to 145 were counted.
		{Name: "propose", Allocs: 145, Call: func() {
			if _, _, err := leader.Propose(ctx, command); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "read index", Allocs: 26, Call: func() {
			if err := leader.ReadIndex(ctx); err != nil {
				t.Fatal(err)
			}
		}},
	}
}
