package consensus

import (
	"fmt"
	"testing"
)

// BenchmarkPropose measures commits of three nodes on one machine.
func BenchmarkPropose(b *testing.B) {
	for _, proposers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("proposers=%d", proposers), func(b *testing.B) {
			c := form(b, 3, nil)
			leader := c.leader()
			command := make([]byte, 512)
			b.SetParallelism(max(1, proposers/2))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, err := leader.Propose(c.ctx(), command); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
