package nodetest

import (
	"testing"
)

// The first node makes the cluster, the others join with one token.
func TestClusterWithJoinTokens(t *testing.T) {
	c := StartWithTokens(t, 3, nil)
	for i, m := range c.Members {
		push(t, c, "app", "v"+m.Config.Name, uint64(i), m)
	}
	c.Check()
}
