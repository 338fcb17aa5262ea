package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

// The cluster's own certificate authority. The first node makes it (keyring.go), the
// state machine keeps it (metadata/authority.go), and any node signs with it: for a node
// with a join token (enroll.go), and for one that has a certificate already
// (renew.go). rotate.go puts another in its place.

// issuedLifetime is how long a certificate is good for that the cluster makes. It is
// renewed after two thirds of that.
const issuedLifetime = 90 * 24 * time.Hour

// enrolledLifetime is how long the first certificate of a node is good for, by which it
// joins. Once it is a member it gets one of full length, which only members do: one that
// never joins is in no list, and could not be removed.
const enrolledLifetime = time.Hour

// errNoAuthority means that the cluster has its certificates from files.
var errNoAuthority = errors.New("this cluster's certificates are from files (cluster.ca, cluster.cert, cluster.key), so it makes none itself: use 'atoll certs' with the folder that they are from")

// authority is the cluster's, ready to sign. Secret.
type authority struct {
	revision uint64
	// certificates are all that are trusted; the first belongs to key.
	certificates []*x509.Certificate
	key          *ecdsa.PrivateKey
}

// parseAuthority reads the record of it. Error: errNoAuthority if it is empty.
func parseAuthority(record *atoll.ClusterAuthority) (*authority, error) {
	if record.GetRevision() == 0 {
		return nil, errNoAuthority
	}
	a := &authority{revision: record.GetRevision()}
	for _, recorded := range record.GetCertificates() {
		certificate, err := x509.ParseCertificate(recorded.GetDer())
		if err != nil {
			return nil, fmt.Errorf("read the cluster's authority, revision %d: %w", a.revision, err)
		}
		a.certificates = append(a.certificates, certificate)
	}
	key, err := parseKeyDER(record.GetCertificates()[0].GetKey())
	if err != nil {
		return nil, fmt.Errorf("read the key of the cluster's authority, revision %d: %w", a.revision, err)
	}
	a.key = key
	return a, nil
}

// makeAuthorityRecord makes an authority that nobody knows yet.
func makeAuthorityRecord(cluster string) (*atoll.AuthorityCertificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := signAuthority(cluster, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return &atoll.AuthorityCertificate{Der: der, Key: encoded, CreatedUnixMs: time.Now().UnixMilli()}, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

// signer is the certificate that goes with the key.
func (a *authority) signer() *x509.Certificate { return a.certificates[0] }

// issue makes a node's certificate.
func (a *authority) issue(node certified, lifetime time.Duration, key any) (*atoll.IssuedCertificate, error) {
	node.cluster = a.signer().Subject.CommonName
	if !nodeName.MatchString(node.name) || !isNodeID(node.id) {
		return nil, fmt.Errorf("%q with the id %q is no node", node.name, node.id)
	}
	der, err := signNode(node, lifetime, key, a.signer(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of node %s: %w", node.name, err)
	}
	issued := &atoll.IssuedCertificate{Chain: [][]byte{der, a.signer().Raw}, Revision: a.revision}
	for _, certificate := range a.certificates {
		issued.Trusted = append(issued.Trusted, certificate.Raw)
	}
	return issued, nil
}

// makeRequest makes a signing request, which proves that its sender has the key.
func makeRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make signing request: %w", err)
	}
	return request, nil
}

// requestedKey reads the key of a signing request.
func requestedKey(request []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = parsed.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	key, ok := parsed.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("signing request: its key is not an ECDSA key on P-256")
	}
	return key, nil
}
