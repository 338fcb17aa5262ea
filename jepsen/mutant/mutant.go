// Package mutant builds atoll with changes that the tree must never have: a wall clock
// that jumps, times that are short enough for a test, and bugs. A test that can't find
// these bugs finds no others either. The changes are laid over the tree for one build
// (go build -overlay), so that the product has no code for tests.
package mutant

// Mutant is atoll with one bug, made by patches.
type Mutant struct {
	// Name is how the command line calls it.
	Name string
	// Breaks says what does not hold any more.
	Breaks string
	// Patches make the bug.
	Patches []Patch
	// Workloads are those most likely to show it.
	Workloads []string
	// Nemesis is the fault under which it shows soonest; "none" if it takes none.
	Nemesis string
	// Catches says by which verdict it is found, and what that takes.
	Catches string
}

// All returns the mutants, layer by layer. Each forms a cluster, and serves clients well
// as long as nothing happens, unless its verdict says that it shows at once.
func All() []Mutant {
	var all []Mutant
	for _, layer := range [][]Mutant{brokenConsensus(), brokenBlobs(), brokenMetadata(), brokenGarbage(), brokenGateway()} {
		all = append(all, layer...)
	}
	return all
}

// Named returns the mutant of that name.
func Named(name string) (m Mutant, ok bool) {
	for _, m := range All() {
		if m.Name == name {
			return m, true
		}
	}
	return Mutant{}, false
}
