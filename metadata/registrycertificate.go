package metadata

import (
	"context"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// The certificate that clients see, if an authority on the network signs it. It is in
// the state so that one node gets it for all, and so that any node can answer when the
// authority asks whether the names are the cluster's. What is in it is the gateway's
// business (gateway/acme.go).

// maxRegistryCertificateBytes bounds the record: a chain has some KiB, a challenge less
// than 300 bytes.
const maxRegistryCertificateBytes = 128 << 10

// putRegistryCertificate changes the record, unless somebody else has meanwhile.
func (c *change) putRegistryCertificate(command *proto.PutRegistryCertificate) error {
	if size := pb.Size(command.GetCertificate()); size > maxRegistryCertificateBytes {
		return invalid("registry's certificate of %d bytes", size)
	}
	if next := command.GetCertificate(); len(next.GetChain()) > 0 && len(next.GetKey()) == 0 {
		return invalid("registry's certificate has no key")
	}
	current, err := c.registryCertificate()
	if err != nil {
		return err
	}
	if current.GetRevision() != command.GetPreviousRevision() {
		return refuse(proto.Refusal_REFUSAL_CHANGED, "the registry's certificate is at revision %d, not %d", current.GetRevision(), command.GetPreviousRevision())
	}
	next := &proto.RegistryCertificate{}
	pb.Merge(next, command.GetCertificate())
	next.Revision = current.GetRevision() + 1
	return c.put(bucketCluster, []byte(keyRegistryCertificate), next)
}

func (v view) registryCertificate() (*proto.RegistryCertificate, error) {
	certificate := &proto.RegistryCertificate{}
	_, err := v.record(bucketCluster, []byte(keyRegistryCertificate), certificate)
	return certificate, err
}

// RegistryCertificate returns the certificate for clients as this node knows it, without
// waiting for anybody, since clients are served without a quorum too; of revision 0 if
// there is none. Secret. Errors: ErrCorrupt, ErrClosed.
func (s *Store) RegistryCertificate() (certificate *proto.RegistryCertificate, err error) {
	err = s.machine.view(func(v view) error {
		certificate, err = v.registryCertificate()
		return err
	})
	return certificate, err
}

// PutRegistryCertificate puts a record in the place of the one whose revision it bears,
// 0 for none, and gives it the next one. Errors: ErrChanged, ErrInvalid, ErrUnavailable,
// ErrOutcomeUnknown.
func (s *Store) PutRegistryCertificate(ctx context.Context, certificate *proto.RegistryCertificate) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutRegistryCertificate{PutRegistryCertificate: &proto.PutRegistryCertificate{
		Certificate: certificate, PreviousRevision: certificate.GetRevision(),
	}}})
	if err == nil {
		certificate.Revision++
	}
	return err
}
