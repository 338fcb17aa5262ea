package nemesis

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestFind(t *testing.T) {
	names := make(map[string]bool)
	for _, n := range All() {
		if names[n.Name] || n.Name == "none" || n.Name == "mix" {
			t.Errorf("the name %s is taken", n.Name)
		}
		names[n.Name] = true
		if n.Does == "" || n.Strike == nil || n.Group == "" {
			t.Errorf("%s is not whole", n.Name)
		}
	}
	if found, err := Find("kill,wipe"); err != nil || len(found) != 2 || found[0].Name != "kill" || found[1].Name != "wipe" {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err := Find("mix"); err != nil || len(found) != len(names)-1 || slices.ContainsFunc(found, func(n Nemesis) bool { return n.Unmixed }) {
		t.Errorf("a mix is %d nemeses, %v", len(found), err)
	}
	if found, err := Find("clock-far"); err != nil || len(found) != 1 || !found[0].Unmixed {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err := Find("none"); err != nil || len(found) != 0 {
		t.Errorf("none is %v, %v", found, err)
	}
	if _, err := Find("kill,earthquake"); err == nil {
		t.Error("there is no earthquake")
	}
}

// Two at a time never work on the same things, and never are both more than a disturbance.
func TestPartner(t *testing.T) {
	f := &Field{Rand: rand.New(rand.NewPCG(1, 1))}
	for _, first := range All() {
		for range 50 {
			second := f.partner(first, All(), true)
			switch {
			case second == nil:
				t.Fatalf("%s has no partner", first.Name)
			case second.Group == first.Group:
				t.Fatalf("%s and %s are of one group", first.Name, second.Name)
			case first.Group != Links && first.Group != Clocks && second.Group != Links && second.Group != Clocks:
				t.Fatalf("%s and %s at once may be more than the cluster promises to survive", first.Name, second.Name)
			}
		}
		if f.partner(first, All(), false) != nil {
			t.Fatalf("%s is not alone", first.Name)
		}
	}
}
