package node

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/gateway"
	atoll "github.com/atollregistry/atoll/proto"
)

// RegistryTLSConfig is where the certificate comes from that clients see: from files or
// from an authority on the network.
type RegistryTLSConfig struct {
	// Cert is the file with the certificate, and the chain behind it, PEM. The files here
	// may be replaced while the node runs: it looks at them every 10 s.
	Cert string `koanf:"cert"`
	// Key is the file with the certificate's private key.
	Key string `koanf:"key"`
	// ClientCA is the file with the authorities whose certificates clients may log in
	// with. Without it no client is asked for one.
	ClientCA string `koanf:"client-ca"`
	// ACME gets the certificate from an authority.
	ACME ACMEConfig `koanf:"acme"`
}

// ACMEConfig is about the authority that signs the certificate that clients see (RFC
// 8555). It must be the same on all nodes. Whoever sets Domains agrees to the authority's
// terms.
type ACMEConfig struct {
	// Domains are the host names that clients use. Port 443 of each must lead to the
	// registry port of the nodes, by TCP: the authority looks there (TLS-ALPN-01).
	Domains []string `koanf:"domains"`
	// Email is where the authority may write to.
	Email string `koanf:"email"`
	// Directory is the URL of the authority's directory; empty for Let's Encrypt.
	Directory string `koanf:"directory"`
	// CA is a file with the authorities that sign the certificate of the directory's
	// server, PEM; empty for those that the system trusts.
	CA string `koanf:"ca"`
}

// maxACMEDomains is how many names one certificate of Let's Encrypt may have.
const maxACMEDomains = 100

func (c *RegistryConfig) validateTLS() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	files, asked := c.TLS.Cert != "" || c.TLS.Key != "", len(c.TLS.ACME.Domains) > 0
	switch {
	case c.PlainHTTP && (files || asked):
		fault("registry.plain-http: a certificate is configured as well: take out one of registry.plain-http and registry.tls")
	case files && asked:
		fault("registry.tls: there are certificate files and names for an authority: take out registry.tls.cert and registry.tls.key, or registry.tls.acme")
	case !c.PlainHTTP && !files && !asked:
		fault("registry.tls: no certificate given, and without one everybody on the way can read and change what clients send: " +
			"set registry.tls.cert and registry.tls.key, or registry.tls.acme.domains, " +
			"or registry.plain-http: true if a balancer takes TLS off or only this machine can reach the port")
	}
	if c.PlainHTTP && c.TLS.ClientCA != "" {
		fault("registry.tls.client-ca: clients show certificates in TLS only, and registry.plain-http is set")
	}
	if c.TLS.Cert != "" && c.TLS.Key == "" {
		fault("registry.tls.key: no file given for the key of registry.tls.cert")
	}
	if c.TLS.Key != "" && c.TLS.Cert == "" {
		fault("registry.tls.cert: no file given for the certificate of registry.tls.key")
	}
	return append(faults, c.TLS.ACME.validate()...)
}

func (c *ACMEConfig) validate() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if len(c.Domains) == 0 {
		if c.Email != "" || c.Directory != "" || c.CA != "" {
			fault("registry.tls.acme.domains: no names given, but other settings of registry.tls.acme")
		}
		return faults
	}
	if len(c.Domains) > maxACMEDomains {
		fault("registry.tls.acme.domains: %d names are more than the %d that one certificate may have", len(c.Domains), maxACMEDomains)
	}
	for _, domain := range c.Domains {
		if !isDomain(domain) {
			fault("registry.tls.acme.domains: %q is not a host name that an authority could look for: like registry.example.com, "+
				"in lower case, no address, no wildcard", domain)
		}
	}
	if c.Email != "" && (strings.Count(c.Email, "@") != 1 || strings.ContainsAny(c.Email, " ,?\r\n")) {
		fault("registry.tls.acme.email: %q is not an e-mail address", c.Email)
	}
	if u, err := url.Parse(c.Directory); c.Directory != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		fault("registry.tls.acme.directory: %q is not an https URL", c.Directory)
	}
	return faults
}

// isDomain says whether a text is a host name in lower case with a dot in it.
func isDomain(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil || len(text) > 253 || !strings.Contains(text, ".") {
		return false
	}
	for label := range strings.SplitSeq(text, ".") {
		if !nodeName.MatchString(label) {
			return false
		}
	}
	return true
}

// registryCertificateNotice is how long before the end of a certificate for clients an
// operator is told. One that is renewed by itself never gets that far.
const registryCertificateNotice = 3 * 24 * time.Hour

// noteRegistryCertificate adds what is wrong with the certificate that clients see on
// the answering node.
func (s *Status) noteRegistryCertificate(expires time.Time, record *atoll.RegistryCertificate) {
	note := func(format string, args ...any) { s.Notes = append(s.Notes, fmt.Sprintf(format, args...)) }
	switch left := time.Until(expires); {
	case expires.IsZero():
		note("there is no certificate for clients yet, so that none can connect to this node")
	case left < 0:
		note("the certificate that clients see on this node has expired on %s: put another one into the files of registry.tls", expires.Format(time.DateTime))
	case left < registryCertificateNotice:
		note("the certificate that clients see on this node expires on %s: put another one into the files of registry.tls", expires.Format(time.DateTime))
	}
	if record.GetFailures() > 0 && record.GetProblem() != "" {
		note("%d attempts in a row to get a certificate from %s have failed, the last on %s: %s", record.GetFailures(), record.GetDirectory(),
			time.UnixMilli(record.GetAttemptedUnixMs()).Format(time.DateTime), record.GetProblem())
	}
}

// scheme is how clients speak to the registry port itself.
func (c *RegistryConfig) scheme() string {
	if c.PlainHTTP {
		return "http"
	}
	return "https"
}

// clientTLS returns how to speak TLS with clients; nil for plain HTTP.
func (p *parts) clientTLS(logger zerolog.Logger) (_ *tls.Config, err error) {
	if p.cfg.Registry.PlainHTTP {
		return nil, nil
	}
	settings := p.cfg.Registry.TLS
	if len(settings.ACME.Domains) > 0 {
		p.acme, err = openACME(settings.ACME, p.store, logger)
		p.certificates = p.acme
	} else {
		p.certificates, err = gateway.OpenCertificate(settings.Cert, settings.Key, logger)
	}
	if err != nil {
		return nil, err
	}
	if settings.ClientCA != "" {
		if p.clientAuthority, err = gateway.OpenClientAuthority(settings.ClientCA, logger); err != nil {
			return nil, err
		}
	}
	p.metrics.MustRegister(newExpiryMetric(p.certificates.NotAfter))
	return gateway.TLSConfig(p.certificates, p.clientAuthority), nil
}

func openACME(cfg ACMEConfig, records gateway.ACMERecords, logger zerolog.Logger) (*gateway.ACME, error) {
	var roots *x509.CertPool
	if cfg.CA != "" {
		content, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("acme.ca: %w", err)
		}
		if roots = x509.NewCertPool(); !roots.AppendCertsFromPEM(content) {
			return nil, errors.New("acme.ca: " + cfg.CA + " holds no certificate in PEM form")
		}
	}
	return gateway.NewACME(gateway.ACMEConfig{
		Directory: cfg.Directory, Roots: roots, Domains: cfg.Domains, Email: cfg.Email, Logger: logger,
	}, records), nil
}
