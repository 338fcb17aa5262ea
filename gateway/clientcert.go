package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// ClientAuthority verifies the certificates that clients may show. Its file may be
// replaced while it is in use: new connections are held against the new one.
type ClientAuthority struct {
	file     string
	log      zerolog.Logger
	interval time.Duration
	current  atomic.Pointer[x509.CertPool]
	// content is what the file had when it was last looked at; problem is why it could
	// not be used, so that it is logged once. They are Run's.
	content []byte
	problem string
}

// OpenClientAuthority reads the certificates, PEM, of those who may sign clients'
// certificates. It fails when there is none, or one of them is not an authority's.
func OpenClientAuthority(file string, logger zerolog.Logger) (*ClientAuthority, error) {
	a := &ClientAuthority{file: file, log: logger, interval: certificateInterval}
	if _, err := a.load(); err != nil {
		return nil, err
	}
	return a, nil
}

// Run follows the file until ctx ends.
func (a *ClientAuthority) Run(ctx context.Context) error {
	return every(ctx, a.interval, a.refresh)
}

// refresh looks at the file once. One that can't be used changes nothing.
func (a *ClientAuthority) refresh() {
	changed, err := a.load()
	switch {
	case err != nil && err.Error() != a.problem:
		a.problem = err.Error()
		a.log.Error().Err(err).Msg("new authority of clients can't be used, the old one stays")
	case err == nil:
		a.problem = ""
	}
	if changed {
		a.log.Info().Str("file", a.file).Msg("authority of clients replaced")
	}
}

func (a *ClientAuthority) load() (changed bool, err error) {
	content, err := readBounded(a.file)
	if err != nil {
		return false, fmt.Errorf("read authority of clients: %w", err)
	}
	if bytes.Equal(content, a.content) {
		return false, nil
	}
	pool, err := parseAuthorities(content)
	if err != nil {
		return false, fmt.Errorf("use %s as authority of clients: %w", a.file, err)
	}
	a.content = content
	a.current.Store(pool)
	return true, nil
}

// parseAuthorities reads all certificates of a file. One that can't be used makes the
// file useless: who wrote it there wants it to count.
func parseAuthorities(content []byte) (*x509.CertPool, error) {
	pool, count := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s; only certificates belong there", block.Type)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !certificate.IsCA {
			return nil, fmt.Errorf("certificate %q in it is not an authority's", certificate.Subject)
		}
		pool.AddCert(certificate)
		count++
	}
	if count == 0 {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return pool, nil
}

// admit has clients asked for a certificate. Who has none is served as well; one
// that the authority did not sign for clients ends the handshake. Sessions are not
// resumed: each connection is held against the authority as it is by then.
func (a *ClientAuthority) admit(config *tls.Config) {
	config.ClientAuth = tls.VerifyClientCertIfGiven
	config.ClientCAs = a.current.Load()
	config.SessionTicketsDisabled = true
	base := config.Clone()
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		current := base.Clone()
		current.ClientCAs = a.current.Load()
		return current, nil
	}
}

// maxCertificateName is how long a name in a certificate may be. RFC 5280 has 64 for
// common names, 255 for host names and e-mail addresses.
const maxCertificateName = 255

// clientCertificateName returns the name of the account that the client's
// certificate, verified in the handshake, stands for: its common name, or without
// one its only e-mail address, or its only host name. ok is false if there is no
// certificate or no such name in it, or if it is a node's: nodes are nobody's
// account, even if one authority signs for both.
//
// The certificate is that of whoever opened the connection. Behind a proxy that takes TLS
// off it is the proxy's own, and says nothing about the client: for requests from
// a trusted proxy it must not be asked for.
func clientCertificateName(r *http.Request) (name string, ok bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return "", false
	}
	leaf := r.TLS.VerifiedChains[0][0]
	for _, uri := range leaf.URIs {
		if uri.Scheme == "atoll" {
			return "", false
		}
	}
	switch {
	case leaf.Subject.CommonName != "":
		name = leaf.Subject.CommonName
	case len(leaf.EmailAddresses) == 1:
		name = leaf.EmailAddresses[0]
	case len(leaf.EmailAddresses) == 0 && len(leaf.DNSNames) == 1:
		name = leaf.DNSNames[0]
	}
	return name, name != "" && len(name) <= maxCertificateName && isPrintable(name)
}

// isPrintable says whether a text consists of visible ASCII characters.
func isPrintable(text string) bool {
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}
