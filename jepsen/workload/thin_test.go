package workload

import (
	"math/rand/v2"
	"testing"

	"github.com/atollregistry/atoll/jepsen/history"
)

// TestThin shows that reads that are left out change no judgement, whatever the history.
func TestThin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	values := []string{"a", "b", absent}
	fewer, orders := 0, 0
	const histories = 4000
	for range histories {
		var ops []history.Op
		for range 2 + random.IntN(10) {
			begin := random.IntN(20)
			one := op(begin, begin+1+random.IntN(8), kindGet, "", values[random.IntN(3)])
			switch random.IntN(5) {
			case 0:
				one.Kind, one.Input = kindPut, values[random.IntN(2)]
			case 1:
				one.Kind = kindHead
			}
			if one.Kind == kindPut && random.IntN(4) == 0 {
				one.Outcome = history.Unknown
			}
			ops = append(ops, one)
		}
		all := operations(ops, func(op *history.Op) any { return op })
		some := thin(all)
		want, err := linearizable(registerModel(), all, searchBound)
		if err != nil {
			t.Fatal(err)
		}
		got, err := linearizable(registerModel(), some, searchBound)
		if err != nil || got != want {
			t.Fatalf("linearizable is %v, %v with %d operations, and %v with all: %+v", got, err, len(some), want, ops)
		}
		if len(some) < len(all) {
			fewer++
		}
		if want {
			orders++
		}
	}
	if fewer < histories/4 || orders < histories/20 {
		t.Errorf("of %d histories %d were thinned, and %d have an order: too few", histories, fewer, orders)
	}
}
