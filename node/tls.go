package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// Protocols on the cluster port, told apart in the TLS handshake (ALPN).
const (
	protocolRaft = "atoll-raft/1"
	protocolGRPC = "h2"
)

// clusterTLS is this node's side of the mutual TLS between nodes.
type clusterTLS struct {
	// clusterName is the host of the certificates' URI,
	// atoll://CLUSTER/node/NAME.
	clusterName string
	certificate tls.Certificate
	authority   *x509.CertPool
}

// loadClusterTLS reads the three files and checks that they belong together and
// to this node.
func loadClusterTLS(cfg ClusterConfig, name string) (*clusterTLS, error) {
	authorityPEM, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("cluster.ca: %w", err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(authorityPEM) {
		return nil, fmt.Errorf("cluster.ca: %s holds no certificate in PEM form", cfg.CA)
	}
	certificate, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("cluster.cert and cluster.key: %w", err)
	}
	own := certificate.Leaf
	clusterName, certifiedName, err := certifiedNode(own)
	if err != nil {
		return nil, fmt.Errorf("cluster.cert: %s: %w", cfg.Cert, err)
	}
	if certifiedName != name {
		return nil, fmt.Errorf("cluster.cert: %s was made for node %q, this is %q", cfg.Cert, certifiedName, name)
	}
	t := &clusterTLS{clusterName: clusterName, certificate: certificate, authority: authority}
	if err := t.verify([]*x509.Certificate{own}); err != nil {
		return nil, fmt.Errorf("cluster.cert: %s: %w", cfg.Cert, err)
	}
	return t, nil
}

// server is the configuration for connections that other nodes open.
func (t *clusterTLS) server() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{t.certificate},
		ClientAuth:             tls.RequireAnyClientCert,
		NextProtos:             []string{protocolGRPC, protocolRaft},
		SessionTicketsDisabled: true,
		VerifyConnection:       t.verifyConnection,
	}
}

// client is the configuration for connections that this node opens. The usual
// host name check does not fit nodes, whose addresses change: what counts is
// that the cluster's authority signed a node's certificate.
func (t *clusterTLS) client(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{t.certificate},
		InsecureSkipVerify:     true, // verifyConnection does it, without the host name
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
		VerifyConnection:       t.verifyConnection,
	}
}

func (t *clusterTLS) verifyConnection(state tls.ConnectionState) error {
	return t.verify(state.PeerCertificates)
}

func (t *clusterTLS) verify(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		intermediates.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         t.authority,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("certificate is not of this cluster's authority: %w", err)
	}
	clusterName, _, err := certifiedNode(chain[0])
	if err != nil {
		return err
	}
	if clusterName != t.clusterName {
		return fmt.Errorf("certificate is for cluster %q, this is %q", clusterName, t.clusterName)
	}
	return nil
}

// certifiedNode reads which node of which cluster a certificate was made for.
func certifiedNode(certificate *x509.Certificate) (clusterName, name string, err error) {
	for _, uri := range certificate.URIs {
		if clusterName, name, ok := parseNodeURI(uri); ok {
			return clusterName, name, nil
		}
	}
	return "", "", errors.New("certificate has no URI atoll://CLUSTER/node/NAME, so it is not a node's")
}

func parseNodeURI(uri *url.URL) (clusterName, name string, ok bool) {
	name, ok = strings.CutPrefix(uri.Path, "/node/")
	return uri.Host, name, ok && uri.Scheme == "atoll" && uri.Host != "" && nodeName.MatchString(name)
}
