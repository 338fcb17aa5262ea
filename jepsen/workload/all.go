package workload

import (
	"fmt"
	"slices"
	"strings"

	"github.com/atollregistry/atoll/jepsen/history"
)

// All returns new objects of all workloads.
func All() []Workload {
	return []Workload{NewRegister(), NewImages(), NewUploads(), NewCollect(), NewListing(), NewMultitag(), NewQuorumless()}
}

// Find returns new objects of the workloads with the given names, with commas between them;
// "all" stands for all.
func Find(names string) ([]Workload, error) {
	all := All()
	if names == "all" {
		return all, nil
	}
	var found []Workload
	for name := range strings.SplitSeq(names, ",") {
		before := len(found)
		var known []string
		for _, one := range all {
			known = append(known, one.Name())
			if one.Name() == name {
				found = append(found, one)
			}
		}
		if len(found) == before {
			return nil, fmt.Errorf("no workload is called %q: there are all, %s", name, strings.Join(known, ", "))
		}
	}
	return found, nil
}

// IsWrite says whether an operation of any workload is a request that changes something.
func IsWrite(op history.Op) bool {
	return slices.Contains([]string{
		kindPut, kindSwap, kindDelete, kindCreate, kindFresh, kindStart, kindPatch, kindFinish, kindCancel, kindPush, kindMark,
	}, op.Kind)
}
