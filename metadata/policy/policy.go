// Package policy decides who may do what in which repository, and which tags stay
// where they are. It is made of pure functions: the state machine keeps the policy,
// here is what it means.
//
// A policy is a list of rules. A rule gives rights to subjects in repositories; what
// no rule gives, nobody has. Rules only ever add, so their order does not matter, and
// reading one is enough to know what it does.
package policy

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// Rights is a set of rights.
type Rights uint8

// The rights. Each of the others includes Pull: clients that push ask for both at
// once (docker requests the scope "pull,push"), look for blobs before they send them,
// and read a manifest before they delete it. A right to write what one may not read
// would help nobody and break all of them.
const (
	// Pull reads manifests, blobs, tags and referrers.
	Pull Rights = 1 << iota
	// Push uploads blobs, and makes and moves tags.
	Push
	// Delete deletes manifests, tags and blobs.
	Delete
	// Admin includes all others, and what is done to a repository as a whole.
	Admin

	// All are the rights that Admin gives.
	All = Pull | Push | Delete | Admin
)

// names of the rights in a policy, in the order in which they are shown.
var rightNames = []struct {
	right Rights
	name  string
}{{Pull, "pull"}, {Push, "push"}, {Delete, "delete"}, {Admin, "admin"}}

// Has reports whether all of the wanted rights are in the set.
func (r Rights) Has(wanted Rights) bool { return r&wanted == wanted }

// String lists the rights as a policy does, such as "pull, push"; "nothing" for none.
func (r Rights) String() string {
	var names []string
	for _, known := range rightNames {
		if r.Has(known.right) {
			names = append(names, known.name)
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// rightOf returns what a right in a policy gives, with what it includes.
func rightOf(name string) (Rights, error) {
	for _, known := range rightNames {
		switch {
		case known.name != name:
		case known.right == Admin:
			return All, nil
		default:
			return known.right | Pull, nil
		}
	}
	return 0, fmt.Errorf("unknown right %q: the rights are pull, push, delete and admin", name)
}

// Default is the policy of a new cluster, revision 0. Its text says why it is what it
// is. It makes no tag immutable: nodes of different versions, which may have different
// defaults, must agree on those. The caller owns the message.
func Default() *proto.Policy {
	p, err := Parse(defaultText)
	if err != nil {
		panic("the default policy is part of the program: " + err.Error()) // a test parses it
	}
	return p
}

//go:embed default.yaml
var defaultText []byte
