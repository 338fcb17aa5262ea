package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/acme"

	"github.com/atollregistry/atoll/proto"
)

const (
	// maxChallengeAnswers bounds the handshakes at a time in which somebody asks for a
	// challenge's answer, which costs a read of the cluster's state.
	maxChallengeAnswers = 8
	// challengeTimeout bounds such a read.
	challengeTimeout = 5 * time.Second
)

// ACMERecords is where the nodes share a certificate. *metadata.Store is one.
type ACMERecords interface {
	// RegistryCertificate returns what this node knows; of revision 0 if there is
	// nothing.
	RegistryCertificate() (*proto.RegistryCertificate, error)
	// PutRegistryCertificate puts a record in the place of the one whose revision it
	// bears, and gives it the next one. Fails with metadata.ErrChanged if there is
	// another one by now.
	PutRegistryCertificate(ctx context.Context, certificate *proto.RegistryCertificate) error
	// CatchUp returns once this node has everything that was acknowledged before.
	CatchUp(ctx context.Context) error
}

// ACMEConfig says whose signature the certificate needs, and for which names.
type ACMEConfig struct {
	// Directory is the URL of the authority's directory. Default: Let's Encrypt.
	Directory string
	// Roots verify the server of the directory; nil for the system's.
	Roots *x509.CertPool
	// Domains are the host names that clients use, at least one.
	Domains []string
	// Email is where the authority may write to; may be empty.
	Email  string
	Logger zerolog.Logger
}

// ACME has a certificate that an authority on the network signs (RFC 8555). All nodes
// share it through the cluster's state: the leader gets it (Keep), every node serves
// it, also without a quorum, and every node answers when the authority asks whether
// the names are the cluster's. It asks by a TLS handshake of its own kind (TLS-ALPN-01,
// RFC 8737) on port 443 of each name, so that no port for plain HTTP is needed, and a
// balancer that passes TCP on may bring it to any node.
type ACME struct {
	cfg      ACMEConfig
	records  ACMERecords
	interval time.Duration
	now      func() time.Time
	answers  chan struct{}
	current  atomic.Pointer[tls.Certificate]

	mu       sync.Mutex // guards what follows
	revision uint64     // of the record that was looked at last
	problem  string     // what was wrong with it, so that it is logged once
}

// NewACME returns an ACME that has no certificate before it has looked at the records.
func NewACME(cfg ACMEConfig, records ACMERecords) *ACME {
	if cfg.Directory == "" {
		cfg.Directory = acme.LetsEncryptURL
	}
	return &ACME{
		cfg: cfg, records: records, interval: certificateInterval, now: time.Now,
		answers: make(chan struct{}, maxChallengeAnswers),
	}
}

// Run follows the records until ctx ends.
func (a *ACME) Run(ctx context.Context) error {
	a.refresh()
	return every(ctx, a.interval, a.refresh)
}

// NotAfter is when the certificate in use expires; zero if there is none yet.
func (a *ACME) NotAfter() time.Time {
	if current := a.current.Load(); current != nil {
		return current.Leaf.NotAfter
	}
	return time.Time{}
}

// errNoCertificate is what ends a handshake; the log says why there is none.
var errNoCertificate = errors.New("the cluster has no certificate yet")

// GetCertificate is for tls.Config. An authority that asks gets the answer to its
// challenge, everybody else the certificate.
func (a *ACME) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if isChallenge(hello) {
		return a.answer(hello.Context(), strings.ToLower(hello.ServerName))
	}
	if a.current.Load() == nil {
		a.refresh()
	}
	if current := a.current.Load(); current != nil {
		return current, nil
	}
	return nil, errNoCertificate
}

// isChallenge says whether a handshake is an authority's: it offers nothing else (RFC
// 8737 section 3). net/http closes the connection after such a handshake.
func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// answer makes the certificate that proves that the leader's account is the one that
// the owner of the name uses. The state is asked for what was stored before the
// authority was told to come, which may not have reached this node yet.
func (a *ACME) answer(ctx context.Context, name string) (*tls.Certificate, error) {
	if !slices.Contains(a.cfg.Domains, name) {
		return nil, fmt.Errorf("answer challenge for %q: no certificate is wanted for it", name)
	}
	select {
	case a.answers <- struct{}{}:
		defer func() { <-a.answers }()
	default:
		return nil, fmt.Errorf("answer challenge for %s: too many at once", name)
	}
	ctx, cancel := context.WithTimeout(ctx, challengeTimeout)
	defer cancel()
	if err := a.records.CatchUp(ctx); err != nil {
		return nil, fmt.Errorf("answer challenge for %s: %w", name, err)
	}
	record, err := a.records.RegistryCertificate()
	if err != nil {
		return nil, fmt.Errorf("answer challenge for %s: %w", name, err)
	}
	for _, challenge := range record.GetChallenges() {
		if challenge.GetDomain() != name {
			continue
		}
		key, err := parseKey(record.GetAccountKey())
		if err != nil {
			return nil, fmt.Errorf("answer challenge for %s: account's key: %w", name, err)
		}
		certificate, err := (&acme.Client{Key: key}).TLSALPN01ChallengeCert(challenge.GetToken(), name)
		if err != nil {
			return nil, fmt.Errorf("answer challenge for %s: %w", name, err)
		}
		a.cfg.Logger.Info().Str("domain", name).Msg("answered an authority's challenge")
		return &certificate, nil
	}
	return nil, fmt.Errorf("answer challenge for %s: there is none", name)
}

// refresh looks at the record once and takes over what is new. What can't be used
// changes nothing.
func (a *ACME) refresh() {
	a.mu.Lock()
	defer a.mu.Unlock()
	record, err := a.records.RegistryCertificate()
	if err == nil && record.GetRevision() == a.revision {
		return
	}
	var pair *tls.Certificate
	if err == nil {
		a.revision = record.GetRevision()
		pair, err = parsePair(record)
	}
	if err != nil {
		if text := err.Error(); text != a.problem {
			a.problem = text
			a.cfg.Logger.Error().Err(err).Msg("the cluster's certificate can't be used")
		}
		return
	}
	a.problem = ""
	if current := a.current.Load(); pair == nil || current != nil && pair.Leaf.Equal(current.Leaf) {
		return
	}
	a.current.Store(pair)
	a.cfg.Logger.Info().Stringer("serial", pair.Leaf.SerialNumber).Time("until", pair.Leaf.NotAfter).Msg("certificate taken over from the cluster")
}

// parsePair returns the certificate in a record; nil if there is none.
func parsePair(record *proto.RegistryCertificate) (*tls.Certificate, error) {
	chain := record.GetChain()
	if len(chain) == 0 {
		return nil, nil
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	key, err := parseKey(record.GetKey())
	if err != nil {
		return nil, fmt.Errorf("its key: %w", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("its key belongs to another certificate")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

// parseKey reads a key that newKey made.
func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an ECDSA key")
	}
	return key, nil
}
