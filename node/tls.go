package node

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
)

// Protocols on the cluster port, told apart in the TLS handshake (ALPN).
const (
	protocolRaft = "atoll-raft/2"
	protocolGRPC = "h2"
	// protocolShards is for links, over which nodes read and write each other's shards (blobstore/link.go).
	protocolShards = "atoll-shards/1"
	// protocolEnroll is for nodes that have no certificate yet (enroll.go). All others
	// need one.
	protocolEnroll = "atoll-enroll/1"
)

// certified is what a certificate says of its node.
type certified struct {
	cluster, name string
	// id is the node's UUID. Certificates from files have none, since they are made
	// before the node is.
	id string
}

// fault says why a certificate is not that of the node that is expected there, of which
// only what is known counts.
func (c certified) fault(expected certified) error {
	switch {
	case c.id != "" && expected.id != "" && c.id != expected.id:
		return fmt.Errorf("%w: it is that of node %s with the id %s, not of %s", errOtherCertificate, c.name, c.id, expected.id)
	case expected.name != "" && c.name != expected.name:
		return fmt.Errorf("%w: it is that of node %s, not of %s", errOtherCertificate, c.name, expected.name)
	}
	return nil
}

// errOtherCertificate means that a node has shown the certificate of another.
var errOtherCertificate = errors.New("the certificate is another node's")

// errUntrusted means that a certificate is of no authority that this node trusts.
var errUntrusted = errors.New("the certificate is not of this cluster's authority")

// trust is whose signatures count.
type trust struct {
	// revision is ClusterAuthority.revision; 0 for an authority from a file.
	revision    uint64
	authorities []*x509.Certificate
	pool        *x509.CertPool
}

func newTrust(revision uint64, authorities []*x509.Certificate) *trust {
	t := &trust{revision: revision, authorities: authorities, pool: x509.NewCertPool()}
	for _, authority := range authorities {
		t.pool.AddCert(authority)
	}
	return t
}

// has says whether an authority is trusted, by the hash of its certificate.
func (t *trust) has(hash authorityHash) bool {
	return slices.ContainsFunc(t.authorities, func(c *x509.Certificate) bool { return hashOf(c) == hash })
}

// authorityHash is the SHA-256 of an authority's certificate.
type authorityHash [sha256.Size]byte

func hashOf(certificate *x509.Certificate) authorityHash { return sha256.Sum256(certificate.Raw) }

// clusterTLS is this node's side of the mutual TLS between nodes. Certificate and trust
// may change at any time: each handshake takes those of the moment.
type clusterTLS struct {
	// clusterName is the host of the certificates' URIs, atoll://CLUSTER/node/NAME and
	// atoll://CLUSTER/id/UUID.
	clusterName string
	// bound says that certificates must name the node's id. Those from files don't.
	bound bool
	// certificate has the authority's behind the node's.
	certificate atomic.Pointer[tls.Certificate]
	trust       atomic.Pointer[trust]
	// log gets what an operator must know of handshakes that failed, complained when that
	// last was, in Unix nanoseconds.
	log        zerolog.Logger
	complained atomic.Int64
}

// loadClusterTLS reads the three files and checks that they belong together and
// to this node.
func loadClusterTLS(cfg ClusterConfig, name string) (*clusterTLS, error) {
	authorityPEM, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("cluster.ca: %w", err)
	}
	authorities, err := parseCertificates(authorityPEM)
	if err != nil {
		return nil, fmt.Errorf("cluster.ca: %s: %w", cfg.CA, err)
	}
	certificate, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("cluster.cert and cluster.key: %w", err)
	}
	own, err := certifiedNode(certificate.Leaf)
	if err != nil {
		return nil, fmt.Errorf("cluster.cert: %s: %w", cfg.Cert, err)
	}
	if own.name != name {
		return nil, fmt.Errorf("cluster.cert: %s was made for node %q, this is %q", cfg.Cert, own.name, name)
	}
	t := &clusterTLS{clusterName: own.cluster}
	t.certificate.Store(&certificate)
	t.trust.Store(newTrust(0, authorities))
	if _, err := t.verify([]*x509.Certificate{certificate.Leaf}); err != nil {
		return nil, fmt.Errorf("cluster.cert: %s: %w", cfg.Cert, err)
	}
	return t, nil
}

// server is the configuration for connections that other nodes open. Who offers nothing
// but to enrol needs no certificate, and gets no further than that.
func (t *clusterTLS) server() *tls.Config {
	mutual := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.certificate.Load(), nil },
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{protocolGRPC, protocolRaft, protocolShards},
		SessionTicketsDisabled: true,
		VerifyConnection:       func(state tls.ConnectionState) error { return t.verifyConnection(state, certified{}) },
	}
	enrolling := mutual.Clone()
	enrolling.ClientAuth, enrolling.VerifyConnection = tls.NoClientCert, nil
	enrolling.NextProtos = []string{protocolEnroll}
	mutual.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if t.bound && len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == protocolEnroll {
			return enrolling, nil
		}
		return nil, nil
	}
	return mutual
}

// client is the configuration for connections that this node opens to a node, of which
// only what is known has to be expected. The usual host name check does not fit nodes,
// whose addresses change: what counts is that the cluster's authority signed that node's
// certificate.
func (t *clusterTLS) client(protocol string, expected certified) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.certificate.Load(), nil },
		InsecureSkipVerify:     true, // verifyConnection does it, without the host name
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			err := t.verifyConnection(state, expected)
			t.complain(err)
			return err
		},
	}
}

// complain logs that this node does not trust another, now and then: whoever dials tries
// again and again, and tells nobody.
func (t *clusterTLS) complain(err error) {
	if !errors.Is(err, errUntrusted) {
		return
	}
	now, last := time.Now().UnixNano(), t.complained.Load()
	if time.Duration(now-last) > waitingLogInterval && t.complained.CompareAndSwap(last, now) {
		t.log.Warn().Err(err).Msg("this node does not trust another")
	}
}

func (t *clusterTLS) verifyConnection(state tls.ConnectionState, expected certified) error {
	node, err := t.verify(state.PeerCertificates)
	if err != nil {
		return err
	}
	return node.fault(expected)
}

// verify returns whose certificate a chain begins with.
func (t *clusterTLS) verify(chain []*x509.Certificate) (certified, error) {
	if len(chain) == 0 {
		return certified{}, errors.New("no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		intermediates.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         t.trust.Load().pool,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return certified{}, untrusted(chain[0], err)
	}
	node, err := certifiedNode(chain[0])
	switch {
	case err != nil:
		return node, err
	case node.cluster != t.clusterName:
		return node, fmt.Errorf("certificate is for cluster %q, this is %q", node.cluster, t.clusterName)
	case t.bound && node.id == "":
		return node, fmt.Errorf("certificate of node %q has no URI atoll://CLUSTER/id/UUID: this cluster makes its certificates itself, so that none from a file is good", node.name)
	}
	return node, nil
}

// untrusted completes what x509 has to say. Which of the two it is, the node can't know.
func untrusted(certificate *x509.Certificate, err error) error {
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		return fmt.Errorf("certificate %q of %s: %w", certificate.Subject.CommonName, certificate.Issuer.CommonName, err)
	}
	return fmt.Errorf("%w: either the node there is of another cluster, or the authority was changed while one of the two was away, "+
		"and that one needs a new join token ('atoll token create --member NAME' on another node): %w", errUntrusted, err)
}

// issuer is the authority that has signed a certificate, as far as it is trusted.
func (t *clusterTLS) issuer(certificate *x509.Certificate) (*x509.Certificate, bool) {
	for _, authority := range t.trust.Load().authorities {
		if certificate.CheckSignatureFrom(authority) == nil {
			return authority, true
		}
	}
	return nil, false
}

// isNodeID says whether a text is a node's id. UUIDs can be written in many ways; those of
// nodes have one, so that a removed node is not another one in capital letters.
func isNodeID(text string) bool {
	id, err := uuid.Parse(text)
	return err == nil && id.String() == text
}

// certifiedNode reads which node of which cluster a certificate was made for.
func certifiedNode(certificate *x509.Certificate) (certified, error) {
	var node certified
	for _, uri := range certificate.URIs {
		name, isNode := strings.CutPrefix(uri.Path, "/node/")
		id, isID := strings.CutPrefix(uri.Path, "/id/")
		switch {
		case uri.Scheme != "atoll" || uri.Host == "" || !isNode && !isID:
			continue
		case node.cluster != "" && node.cluster != uri.Host, isNode && node.name != "", isID && node.id != "":
			return certified{}, errors.New("certificate names two nodes")
		case isNode && nodeName.MatchString(name):
			node.cluster, node.name = uri.Host, name
		case isID && isNodeID(id):
			node.cluster, node.id = uri.Host, id
		}
	}
	if node.name == "" {
		return certified{}, errors.New("certificate has no URI atoll://CLUSTER/node/NAME, so it is not a node's")
	}
	return node, nil
}

// nodeURIs are how a certificate names a node; certifiedNode reads them.
func nodeURIs(node certified) []*url.URL {
	uris := []*url.URL{{Scheme: "atoll", Host: node.cluster, Path: "/node/" + node.name}}
	if node.id != "" {
		uris = append(uris, &url.URL{Scheme: "atoll", Host: node.cluster, Path: "/id/" + node.id})
	}
	return uris
}

// String is how a node is named in logs.
func (c certified) String() string { return cmp.Or(c.name, c.id, "unknown") }
