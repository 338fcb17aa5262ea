package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	// certificateInterval is the time between two looks at a certificate's files.
	certificateInterval = 10 * time.Second
	// maxCertificateBytes is how long one of them may be. Chains have some KiB.
	maxCertificateBytes = 1 << 20
)

// Certificate is a certificate with its private key, in two PEM files that may be
// replaced while it is in use: new connections get the new one. Files that can't
// be used, do not fit each other or have expired change nothing.
type Certificate struct {
	certFile, keyFile string
	log               zerolog.Logger
	interval          time.Duration
	current           atomic.Pointer[tls.Certificate]
	// cert and key are what the files had when they were last looked at; problem is
	// why it could not be used, so that it is logged once. They are Run's.
	cert, key []byte
	problem   string
}

// OpenCertificate reads a certificate, with the chain behind it, and its key. It
// fails when they can't be read or do not fit each other.
func OpenCertificate(certFile, keyFile string, logger zerolog.Logger) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: logger, interval: certificateInterval}
	if _, err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// Run follows the files until ctx ends. It compares their content, not their
// times: secrets that Kubernetes mounts are swapped by a symbolic link.
func (c *Certificate) Run(ctx context.Context) error {
	return every(ctx, c.interval, c.refresh)
}

// every calls look again and again until ctx ends.
func every(ctx context.Context, interval time.Duration, look func()) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			look()
		}
	}
}

// GetCertificate is for tls.Config: every client gets the certificate in use.
func (c *Certificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}

// NotAfter is when the certificate in use expires.
func (c *Certificate) NotAfter() time.Time { return c.current.Load().Leaf.NotAfter }

// refresh looks at the files once.
func (c *Certificate) refresh() {
	changed, err := c.load()
	switch {
	case err != nil && err.Error() != c.problem:
		c.problem = err.Error()
		c.log.Error().Err(err).Time("until", c.current.Load().Leaf.NotAfter).Msg("new certificate can't be used, the old one stays")
	case err == nil:
		c.problem = ""
	}
	if changed {
		leaf := c.current.Load().Leaf
		c.log.Info().Str("cert", c.certFile).Stringer("serial", leaf.SerialNumber).Time("until", leaf.NotAfter).Msg("certificate replaced")
	}
}

// load reads the files and takes over what is new in them. An error is returned
// each time it is met.
func (c *Certificate) load() (changed bool, err error) {
	cert, err := readBounded(c.certFile)
	if err != nil {
		return false, fmt.Errorf("read certificate: %w", err)
	}
	key, err := readBounded(c.keyFile)
	if err != nil {
		return false, fmt.Errorf("read certificate's key: %w", err)
	}
	if bytes.Equal(cert, c.cert) && bytes.Equal(key, c.key) {
		return false, nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return false, fmt.Errorf("use certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	if now := time.Now(); c.current.Load() != nil && now.After(pair.Leaf.NotAfter) {
		return false, fmt.Errorf("use certificate %s: it expired at %s", c.certFile, pair.Leaf.NotAfter)
	}
	c.cert, c.key = cert, key
	c.current.Store(&pair)
	return true, nil
}

func readBounded(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxCertificateBytes+1))
	if err == nil && len(content) > maxCertificateBytes {
		err = fmt.Errorf("%s has more than %d bytes", name, maxCertificateBytes)
	}
	return content, err
}
