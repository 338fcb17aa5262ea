package workload

import (
	"fmt"
	"math"
	"strings"

	"github.com/anishathalye/porcupine"

	"github.com/atollregistry/atoll/jepsen/history"
)

// The kinds of operations that the models know. A register's operation has what it wants
// to write, or else saw, as its Input and Output: digests, or absent.
const (
	kindPut    = "put"    // Input: the digest
	kindGet    = "get"    // Output: what was there
	kindHead   = "head"   // the same by HEAD
	kindSwap   = "cas"    // Input: what must be there, a space, the new digest. Output: done, or was and what was there
	kindProbe  = "probe"  // a compare and swap whose condition never holds: it changes nothing, and tells what is there
	kindDelete = "delete" // Output: done, or absent if nothing was there
	kindList   = "list"   // Output: the names, with commas between
)

const (
	// absent is how histories say that nothing is there.
	absent = "-"
	// done is the Output of a conditional operation that was carried out.
	done = "done"
	// was begins the Output of a compare and swap that was refused; what follows is the
	// state that refused it, or notTold.
	was = "was "
	// notTold is in place of a state that a refusal did not tell.
	notTold = "?"
)

// isRead says that operations of a kind change nothing.
func isRead(kind string) bool {
	switch kind {
	case kindPut, kindSwap, kindDelete:
		return false
	}
	return true
}

// operations returns a history as porcupine wants it; input says what the model gets of each
// operation. What was not done, and reads that told nothing, are left out. A write of unknown
// outcome may be done at any later time, so that it lasts for ever. If it never was done it is the
// same as if it were done after all else: that is why models always do it.
func operations(ops []history.Op, input func(op *history.Op) any) []porcupine.Operation {
	clients := 0
	for _, op := range ops {
		clients = max(clients, op.Client+1)
	}
	var list []porcupine.Operation
	for i := range ops {
		op := &ops[i]
		one := porcupine.Operation{ClientId: op.Client, Input: input(op), Call: int64(op.Call), Return: int64(op.Return), Metadata: op}
		switch {
		case op.Outcome == history.Fail, op.Outcome == history.Unknown && isRead(op.Kind):
			continue
		case op.Outcome == history.Unknown:
			one.Return = math.MaxInt64
			one.ClientId = clients // a line of its own in drawings: its client goes on meanwhile
			clients++
		}
		list = append(list, one)
	}
	return list
}

// registerOperations is operations for registerModel, without reads that say nothing new.
func registerOperations(ops []history.Op) []porcupine.Operation {
	return thin(operations(ops, func(op *history.Op) any { return op }))
}

// registerModel is a register that holds a digest, or absent as it does at first.
func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return absent },
		Step: func(state, input, _ any) (bool, any) {
			ok, next := stepRegister(state.(string), input.(*history.Op))
			return ok, next
		},
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return short(state.(string)) },
	}
}

// stepRegister returns whether the operation can have been told what it was when the register
// was in this state, and the state after it.
func stepRegister(state string, op *history.Op) (ok bool, next string) {
	told := op.Outcome == history.OK
	switch op.Kind {
	case kindPut:
		return true, op.Input
	case kindDelete:
		return !told || (op.Output == absent) == (state == absent), absent
	case kindSwap, kindProbe:
		wanted, value, _ := strings.Cut(op.Input, " ")
		held := state == wanted
		if told && op.Output != done {
			found := strings.TrimPrefix(op.Output, was)
			return !held && (found == notTold || found == state), state
		}
		if held {
			return true, value
		}
		return !told, state
	}
	return op.Output == state, state
}

// maxMembers is how many names a set of setModel may have.
const maxMembers = 16

// member returns the name of the i-th member of a set.
func member(i int) string { return fmt.Sprintf("t%02d", i) }

// setAccess is an operation on a set of members.
type setAccess struct {
	*history.Op
	// members is a bit for each member that is put in, taken out or listed.
	members uint32
}

// membersOf returns the bits of names with commas between; ok says that all are members.
func membersOf(names string) (members uint32, ok bool) {
	if names == "" {
		return 0, true
	}
	for name := range strings.SplitSeq(names, ",") {
		i := 0
		for i < maxMembers && member(i) != name {
			i++
		}
		if i == maxMembers {
			return 0, false
		}
		members |= 1 << i
	}
	return members, true
}

// setOperations is operations for setModel. All names in the operations must be members.
func setOperations(ops []history.Op) []porcupine.Operation {
	return operations(ops, func(op *history.Op) any {
		names := op.Input
		if op.Kind == kindList {
			names = op.Output
		}
		members, _ := membersOf(names)
		return setAccess{Op: op, members: members}
	})
}

// setModel is a set that is empty at first. A list of it shows all of it at one moment.
func setModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return uint32(0) },
		Step: func(before, input, _ any) (bool, any) {
			state, access := before.(uint32), input.(setAccess)
			switch access.Kind {
			case kindPut:
				return true, state | access.members
			case kindDelete:
				there := state&access.members != 0
				ok := access.Outcome != history.OK || (access.Output != absent) == there
				return ok, state &^ access.members
			}
			return state == access.members, state
		},
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return fmt.Sprintf("%016b", state) },
	}
}

// describe says what an operation was, for drawings and messages.
func describe(input, _ any) string {
	var op *history.Op
	switch input := input.(type) {
	case *history.Op:
		op = input
	case setAccess:
		op = input.Op
	}
	text := op.Kind
	if op.Input != "" {
		text += " " + short(op.Input)
	}
	if op.Outcome == history.Unknown {
		return text + ": unknown"
	}
	return text + ": " + short(op.Output)
}

// short returns a text with its digests shortened.
func short(text string) string {
	words := strings.Split(text, " ")
	for i, word := range words {
		if hex, found := strings.CutPrefix(word, "sha256:"); found {
			words[i] = hex[:min(len(hex), 10)]
		}
	}
	return strings.Join(words, " ")
}
