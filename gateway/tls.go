package gateway

import (
	"context"
	"crypto/tls"
	"time"

	"golang.org/x/crypto/acme"
)

// Certificates has the certificate that clients see. *Certificate, from files, and
// *ACME, from an authority on the network, are such.
type Certificates interface {
	// GetCertificate is for tls.Config.
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// NotAfter is when the certificate in use expires; zero if there is none yet.
	NotAfter() time.Time
	// Run keeps it up to date until ctx ends.
	Run(ctx context.Context) error
}

// TLSConfig returns how to speak TLS with clients: 1.2 or 1.3, with the cipher
// suites that crypto/tls takes for secure. With an authority clients may show a
// certificate of theirs (see ClientAuthority).
//
// Of HTTP/1.1 and HTTP/2 the first is chosen if the client has both: it brings a
// connection of its own for each layer, while HTTP/2 sends all layers through one,
// with one congestion window, one loss holding up all of them, and flow control on
// top. A client that has only HTTP/2 gets that.
func TLSConfig(certificates Certificates, authority *ClientAuthority) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// In the order of preference: see crypto/tls.
		NextProtos:     []string{"http/1.1", "h2"},
		GetCertificate: certificates.GetCertificate,
	}
	if _, asked := certificates.(*ACME); asked {
		config.NextProtos = append(config.NextProtos, acme.ALPNProto)
	}
	if authority != nil {
		authority.admit(config)
	}
	return config
}
