package workload

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

// op makes an operation of a history by hand: its times are in seconds. An outcome of its own is
// given as the output "unknown" or "fail".
func op(call, end int, kind, input, output string) history.Op {
	one := history.Op{Workload: "w", Kind: kind, Key: "k", Input: input, Output: output, Node: "n0", Outcome: history.OK}
	one.Call, one.Return = time.Duration(call)*time.Second, time.Duration(end)*time.Second
	if output == string(history.Unknown) || output == string(history.Fail) {
		one.Outcome, one.Output = history.Outcome(output), ""
	}
	return one
}

func TestRegisterModel(t *testing.T) {
	for name, test := range map[string]struct {
		ops  []history.Op
		want bool
	}{
		"in order":                {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindGet, "", "a"), op(4, 5, kindDelete, "", done), op(6, 7, kindGet, "", absent)}, true},
		"at first absent":         {[]history.Op{op(0, 1, kindGet, "", "a")}, false},
		"stale read":              {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindPut, "b", done), op(4, 5, kindGet, "", "a")}, false},
		"concurrent, either":      {[]history.Op{op(0, 9, kindPut, "a", done), op(2, 3, kindGet, "", absent), op(4, 5, kindHead, "", "a")}, true},
		"concurrent, back":        {[]history.Op{op(0, 9, kindPut, "a", done), op(2, 3, kindGet, "", "a"), op(4, 5, kindGet, "", absent)}, false},
		"lost":                    {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindGet, "", absent)}, false},
		"unknown, never done":     {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 3, kindGet, "", absent)}, true},
		"unknown, done late":      {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 3, kindPut, "b", done), op(4, 5, kindGet, "", "b"), op(6, 7, kindGet, "", "a")}, true},
		"unknown, done twice":     {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 3, kindGet, "", "a"), op(4, 5, kindPut, "b", done), op(6, 7, kindGet, "", "a")}, false},
		"failed, but done":        {[]history.Op{op(0, 1, kindPut, "a", "fail"), op(2, 3, kindGet, "", "a")}, false},
		"put twice":               {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindPut, "b", done), op(4, 5, kindGet, "", "b"), op(6, 7, kindGet, "", "a")}, false},
		"swap":                    {[]history.Op{op(0, 1, kindSwap, "- a", done), op(2, 3, kindSwap, "a b", done), op(4, 5, kindGet, "", "b")}, true},
		"swap of something else":  {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "x b", done)}, false},
		"two winners":             {[]history.Op{op(0, 5, kindSwap, "- a", done), op(0, 5, kindSwap, "- b", done)}, false},
		"refused for nothing":     {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "a b", was+"a")}, false},
		"refused, and told why":   {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "- b", was+"a")}, true},
		"refused, told wrong":     {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "x b", was+"c")}, false},
		"refused, not told why":   {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "- b", was+notTold), op(4, 5, kindSwap, "a c", was+notTold)}, false},
		"unknown swap, done":      {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "a b", "unknown"), op(4, 5, kindGet, "", "b")}, true},
		"unknown swap, not done":  {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "a b", "unknown"), op(4, 5, kindGet, "", "a")}, true},
		"unknown swap, can't be":  {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindSwap, "x b", "unknown"), op(4, 5, kindGet, "", "b")}, false},
		"probe, and told":         {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindProbe, "x b", was+"a")}, true},
		"probe, told wrong":       {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindPut, "b", done), op(4, 5, kindProbe, "x c", was+"a")}, false},
		"probe, done":             {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindProbe, "x b", done)}, false},
		"probe without a reply":   {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindProbe, "x b", "unknown"), op(4, 5, kindGet, "", "b")}, false},
		"delete of nothing":       {[]history.Op{op(0, 1, kindDelete, "", done)}, false},
		"nothing to delete":       {[]history.Op{op(0, 1, kindDelete, "", absent), op(2, 3, kindPut, "a", done), op(4, 5, kindDelete, "", absent)}, false},
		"unknown delete, done":    {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindDelete, "", "unknown"), op(4, 5, kindGet, "", absent)}, true},
		"unknown delete, not yet": {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindDelete, "", "unknown"), op(4, 5, kindGet, "", "a"), op(6, 7, kindGet, "", absent)}, true},
		"read that told nothing":  {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindGet, "", "unknown")}, true},
	} {
		got, err := linearizable(registerModel(), registerOperations(test.ops), searchBound)
		if err != nil || got != test.want {
			t.Errorf("%s: linearizable is %v (%v), want %v", name, got, err, test.want)
		}
	}
}

func TestSetModel(t *testing.T) {
	for name, test := range map[string]struct {
		ops  []history.Op
		want bool
	}{
		"in order":            {[]history.Op{op(0, 1, kindPut, "t01", done), op(2, 3, kindPut, "t00", done), op(4, 5, kindList, "", "t00,t01"), op(6, 7, kindDelete, "t01", done), op(8, 9, kindList, "", "t00")}, true},
		"put again":           {[]history.Op{op(0, 1, kindPut, "t01", done), op(2, 3, kindPut, "t01", done), op(4, 5, kindList, "", "t01")}, true},
		"misses one":          {[]history.Op{op(0, 1, kindPut, "t01", done), op(2, 3, kindList, "", "")}, false},
		"shows one deleted":   {[]history.Op{op(0, 1, kindPut, "t01", done), op(2, 3, kindDelete, "t01", done), op(4, 5, kindList, "", "t01")}, false},
		"no moment":           {[]history.Op{op(0, 1, kindPut, "t00", done), op(2, 3, kindPut, "t01", done), op(0, 9, kindList, "", "t01")}, false},
		"unknown, there":      {[]history.Op{op(0, 1, kindPut, "t00", "unknown"), op(2, 3, kindList, "", ""), op(4, 5, kindList, "", "t00")}, true},
		"unknown, gone again": {[]history.Op{op(0, 1, kindPut, "t00", "unknown"), op(2, 3, kindList, "", "t00"), op(4, 5, kindList, "", "")}, false},
		"unknown delete":      {[]history.Op{op(0, 1, kindPut, "t00", done), op(2, 3, kindDelete, "t00", "unknown"), op(4, 5, kindList, "", "t00"), op(6, 7, kindList, "", "")}, true},
		"delete of nothing":   {[]history.Op{op(0, 1, kindDelete, "t00", done)}, false},
		"nothing to delete":   {[]history.Op{op(0, 1, kindPut, "t00", done), op(2, 3, kindDelete, "t00", absent)}, false},
	} {
		got, err := linearizable(setModel(), setOperations(test.ops), searchBound)
		if err != nil || got != test.want {
			t.Errorf("%s: linearizable is %v (%v), want %v", name, got, err, test.want)
		}
	}
	if _, ok := membersOf("t00,t99"); ok {
		t.Error("t99 is a member of a set")
	}
}

// TestSearchEnds shows that keys are replaced early enough: a history as long and uncertain as a key's may
// get is judged fast, also if it is wrong.
func TestSearchEnds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, wrong := range []bool{false, true} {
		ops := uncertain(random, wrong)
		got, err := linearizable(registerModel(), registerOperations(ops), searchBound)
		if err != nil || got == wrong {
			t.Errorf("wrong %v: linearizable is %v, %v", wrong, got, err)
		}
		ops = uncertainSet(random, wrong)
		got, err = linearizable(setModel(), setOperations(ops), searchBound)
		if err != nil || got == wrong {
			t.Errorf("set, wrong %v: linearizable is %v, %v", wrong, got, err)
		}
	}
}

// TestSearchEndsWithoutOrder has as many writes of unknown outcome at the beginning of a key as there may be, which may
// be done at any time, and a stale read at its end.
func TestSearchEndsWithoutOrder(t *testing.T) {
	const bound = 20 * time.Second
	// A tag of quorumless has one writer, and a long life.
	var long []history.Op
	for i := range unknownPerKey {
		long = append(long, op(0, 1, kindPut, fmt.Sprintf("u%d", i), "unknown"))
	}
	for i := range quorumlessOperations / 10 {
		value := fmt.Sprintf("v%d", i)
		long = append(long, op(4*i+2, 4*i+3, kindPut, value, done))
		for client := range 9 {
			read := op(4*i+4, 4*i+5, kindGet, "", value)
			read.Client, read.Call, read.Return = client, read.Call+time.Duration(client), read.Return+time.Duration(client)
			long = append(long, read)
		}
	}
	long = append(long, op(1000, 1001, kindGet, "", "v0"))
	if ok, err := linearizable(registerModel(), registerOperations(long), bound); ok || err != nil {
		t.Errorf("a long register: linearizable is %v, %v", ok, err)
	}
	var ops, set []history.Op
	for i := range maxUncertain {
		ops = append(ops, op(0, 1, kindPut, fmt.Sprintf("u%d", i), "unknown"))
		set = append(set, op(0, 1, kindPut, member(i), "unknown"))
	}
	for i := range (operationsPerKey - maxUncertain) / 2 {
		value := fmt.Sprintf("v%d", i)
		ops = append(ops, op(4*i+2, 4*i+3, kindPut, value, done), op(4*i+4, 4*i+5, kindGet, "", value))
		set = append(set, op(4*i+2, 4*i+3, kindPut, member(15), done), op(4*i+4, 4*i+5, kindList, "", member(15)))
	}
	ops = append(ops, op(1000, 1001, kindGet, "", "v0"))
	set = append(set, op(1000, 1001, kindList, "", ""))
	if ok, err := linearizable(registerModel(), registerOperations(ops), bound); ok || err != nil {
		t.Errorf("register: linearizable is %v, %v", ok, err)
	}
	if ok, err := linearizable(setModel(), setOperations(set), bound); ok || err != nil {
		t.Errorf("set: linearizable is %v, %v", ok, err)
	}
}

// uncertain returns what a register told that did its operations one by one, each of
// which lasted as long as four others. The wrong one ends with a read of what was never there.
func uncertain(random *rand.Rand, wrong bool) []history.Op {
	var ops []history.Op
	state, unknown := absent, 0
	for i := range operationsPerKey {
		one := op(i, i+4, kindGet, "", state)
		value := fmt.Sprintf("v%d", i)
		switch n := random.IntN(10); {
		case n < 3:
			one = op(i, i+4, kindPut, value, done)
			state = value
		case n < 5:
			one = op(i, i+4, kindSwap, state+" "+value, done)
			state = value
		case n < 6 && state != absent:
			one = op(i, i+4, kindDelete, "", done)
			state = absent
		}
		if unknown < unknownPerKey+4 && one.Kind != kindGet && random.IntN(3) == 0 {
			unknown++
			one.Outcome, one.Output = history.Unknown, ""
		}
		ops = append(ops, one)
	}
	if wrong {
		ops = append(ops, op(300, 301, kindGet, "", "nothing"))
	}
	return ops
}

// uncertainSet is uncertain for a set.
func uncertainSet(random *rand.Rand, wrong bool) []history.Op {
	var ops []history.Op
	var state [listingTags]bool
	unknown := 0
	for i := range operationsPerKey {
		n := random.IntN(listingTags)
		one := op(i, i+4, kindList, "", "")
		switch which := random.IntN(10); {
		case which < 3:
			one = op(i, i+4, kindPut, member(n), done)
			state[n] = true
		case which < 5 && state[n]:
			one = op(i, i+4, kindDelete, member(n), done)
			state[n] = false
		default:
			for m, there := range state {
				if there && one.Output != "" {
					one.Output += ","
				}
				if there {
					one.Output += member(m)
				}
			}
		}
		if unknown < unknownPerKey+4 && one.Kind != kindList && random.IntN(3) == 0 {
			unknown++
			one.Outcome, one.Output = history.Unknown, ""
		}
		ops = append(ops, one)
	}
	if wrong {
		ops = append(ops, op(300, 301, kindList, "", member(0)), op(302, 303, kindList, "", ""), op(304, 305, kindDelete, member(15), done))
	}
	return ops
}
