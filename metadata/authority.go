package metadata

import (
	"context"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// The cluster's certificate authority: whose signature makes a node. It is in the state
// so that any node can let another one in, and so that all change to a new one
// together. What the certificates say is the node's business (node/authority.go).

const (
	// maxAuthorityCertificates bounds how many are trusted at a time: one, and one that
	// takes over.
	maxAuthorityCertificates = 2
	// maxAuthorityBytes bounds a certificate or a key of it.
	maxAuthorityBytes = 8 << 10
)

// putAuthority changes the authority, unless somebody else has meanwhile.
func (c *change) putAuthority(command *proto.PutAuthority) error {
	certificates := command.GetAuthority().GetCertificates()
	if len(certificates) < 1 || len(certificates) > maxAuthorityCertificates {
		return invalid("authority of %d certificates", len(certificates))
	}
	for _, certificate := range certificates {
		if len(certificate.GetDer()) == 0 || len(certificate.GetDer()) > maxAuthorityBytes || len(certificate.GetKey()) > maxAuthorityBytes {
			return invalid("authority's certificate of %d bytes with a key of %d", len(certificate.GetDer()), len(certificate.GetKey()))
		}
	}
	if len(certificates[0].GetKey()) == 0 {
		return invalid("authority's first certificate has no key to sign with")
	}
	current, err := c.authority()
	if err != nil {
		return err
	}
	if current.GetRevision() != command.GetPreviousRevision() {
		return refuse(proto.Refusal_REFUSAL_CHANGED, "the authority is at revision %d, not %d", current.GetRevision(), command.GetPreviousRevision())
	}
	next := pb.Clone(command.GetAuthority()).(*proto.ClusterAuthority)
	next.Revision = current.GetRevision() + 1
	c.republish = true
	return c.put(bucketCluster, []byte(keyAuthority), next)
}

// authority returns the cluster's authority, of revision 0 if it has none: then its
// nodes have their certificates from files.
func (v view) authority() (*proto.ClusterAuthority, error) {
	authority := &proto.ClusterAuthority{}
	_, err := v.record(bucketCluster, []byte(keyAuthority), authority)
	return authority, err
}

// Authority returns the cluster's authority as it is in the state, of revision 0 if
// there is none. Secret. The message is shared: it must not be changed.
func (m *Machine) Authority() *proto.ClusterAuthority { return m.clusterAuthority.Load() }

// LocalAuthority returns the cluster's authority as this node knows it, without
// waiting for anybody; of revision 0 if there is none. Secret. The message is shared:
// it must not be changed.
func (s *Store) LocalAuthority() *proto.ClusterAuthority { return s.machine.Authority() }

// PutAuthority puts certificates in the place of those of the revision that the caller
// has seen; 0 for none. The first signs, all are trusted. Errors: ErrChanged,
// ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) PutAuthority(ctx context.Context, previousRevision uint64, certificates []*proto.AuthorityCertificate) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutAuthority{PutAuthority: &proto.PutAuthority{
		Authority: &proto.ClusterAuthority{Certificates: certificates}, PreviousRevision: previousRevision,
	}}})
	return err
}
