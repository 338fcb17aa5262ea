package node

import (
	atoll "github.com/atollregistry/atoll/proto"
)

// rotation is how far a change of the authority is. It follows from the record alone, so
// that any leader goes on with it.
type rotation int

const (
	// rotationNone: there is one authority.
	rotationNone rotation = iota
	// rotationSpreading: another is trusted by those that know of it, but does not sign
	// yet.
	rotationSpreading
	// rotationRenewing: the new one signs, and the old one is still trusted.
	rotationRenewing
)

func rotationOf(record *atoll.ClusterAuthority) rotation {
	certificates := record.GetCertificates()
	switch {
	case len(certificates) < 2:
		return rotationNone
	case len(certificates[1].GetKey()) > 0:
		return rotationSpreading
	default:
		return rotationRenewing
	}
}
