package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/atollregistry/atoll/proto"
)

const (
	// orderTimeout bounds one attempt to get a certificate.
	orderTimeout = 10 * time.Minute
	// orderRequestTimeout bounds one request to the authority.
	orderRequestTimeout = 30 * time.Second
	// firstOrderPause is the pause after an attempt that failed, doubled with each that
	// follows up to lastOrderPause. Let's Encrypt allows five failures an hour for a
	// name and an account; this makes four in the first half hour.
	firstOrderPause = 2 * time.Minute
	lastOrderPause  = 6 * time.Hour
	// orderNoteTimeout bounds noting what became of an attempt, also one that was broken
	// off.
	orderNoteTimeout = 5 * time.Second
)

// Keep sees to it that there is a certificate for all names that does not expire soon,
// while ctx lasts. One node at a time should, the leader; if two do, the records let
// only one of them go on.
func (a *ACME) Keep(ctx context.Context) {
	a.keepOnce(ctx)
	_ = every(ctx, a.interval, func() { a.keepOnce(ctx) }) // never fails
}

func (a *ACME) keepOnce(ctx context.Context) {
	record, err := a.records.RegistryCertificate()
	if err != nil || !a.due(record) {
		return // an unreadable state ends the node for other reasons
	}
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	log := a.cfg.Logger.With().Strs("domains", a.cfg.Domains).Str("directory", a.cfg.Directory).Logger()
	log.Info().Msg("getting a certificate")
	if err := a.order(ctx, record); err != nil {
		next := a.now().Add(orderPause(record.GetFailures()))
		log.Error().Err(err).Uint32("failures", record.GetFailures()).Time("next", next).Msg("no certificate: the authority must reach this cluster at port 443 of every domain, by TLS that nobody takes off")
		a.noteFailure(ctx, record, err)
		return
	}
	a.refresh()
}

// due says whether it is time to get a certificate: the one that is there is for other
// names or of another authority, or two thirds of its life are over.
func (a *ACME) due(record *proto.RegistryCertificate) bool {
	now := a.now()
	sameDirectory := record.GetDirectory() == a.cfg.Directory
	if begun := time.UnixMilli(record.GetAttemptedUnixMs()); sameDirectory && record.GetFailures() > 0 && now.Before(begun.Add(orderPause(record.GetFailures()))) {
		return false
	}
	pair, err := parsePair(record)
	if err != nil || pair == nil || !sameDirectory || verifyNames(pair.Leaf, a.cfg.Domains) != nil {
		return true
	}
	life := pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore)
	return now.After(pair.Leaf.NotAfter.Add(-life / 3))
}

// orderPause is how long after the beginning of the last of so many failures in a row
// nothing is tried.
func orderPause(failures uint32) time.Duration {
	pause := firstOrderPause
	for range min(failures, 16) - min(failures, 1) {
		pause = min(2*pause, lastOrderPause)
	}
	return pause
}

func verifyNames(leaf *x509.Certificate, domains []string) error {
	for _, domain := range domains {
		if err := leaf.VerifyHostname(domain); err != nil {
			return err
		}
	}
	return nil
}

// order gets a certificate and stores it. The record is kept as it is stored, step by
// step. Every attempt counts as failed until it has succeeded, so that a node that
// dies in the middle does not try again and again.
func (a *ACME) order(ctx context.Context, record *proto.RegistryCertificate) error {
	if err := a.begin(ctx, record); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	accountKey, err := parseKey(record.GetAccountKey())
	if err != nil {
		return fmt.Errorf("use the account's key: %w", err)
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.cfg.Roots},
	}
	defer transport.CloseIdleConnections()
	client := &acme.Client{
		Key: accountKey, DirectoryURL: a.cfg.Directory, UserAgent: "atoll",
		HTTPClient: &http.Client{Transport: transport, Timeout: orderRequestTimeout},
	}
	account := &acme.Account{}
	if a.cfg.Email != "" {
		account.Contact = []string{"mailto:" + a.cfg.Email}
	}
	if _, err := client.Register(ctx, account, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return fmt.Errorf("register with the authority: %w", err)
	}
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(a.cfg.Domains...))
	if err != nil {
		return fmt.Errorf("order: %w", err)
	}
	if err := a.authorize(ctx, client, order, record); err != nil {
		return err
	}
	if order, err = client.WaitOrder(ctx, order.URI); err != nil {
		return fmt.Errorf("wait for the order: %w", err)
	}
	return a.finish(ctx, client, order, record)
}

// begin stores that an attempt is made, with the key of a new account if there is none
// with this authority. The key is stored before it is used.
func (a *ACME) begin(ctx context.Context, record *proto.RegistryCertificate) error {
	if record.GetDirectory() != a.cfg.Directory || len(record.GetAccountKey()) == 0 {
		_, encoded, err := newKey()
		if err != nil {
			return err
		}
		record.Directory, record.AccountKey, record.Failures = a.cfg.Directory, encoded, 0
	}
	record.AttemptedUnixMs, record.Challenges = a.now().UnixMilli(), nil
	record.Failures++
	return a.records.PutRegistryCertificate(ctx, record)
}

// authorize proves that the names are the cluster's: it stores what all nodes have to
// answer, and then has the authority ask.
func (a *ACME) authorize(ctx context.Context, client *acme.Client, order *acme.Order, record *proto.RegistryCertificate) error {
	var accepted []*acme.Challenge
	var pending []string
	for _, url := range order.AuthzURLs {
		authorization, err := client.GetAuthorization(ctx, url)
		if err != nil {
			return fmt.Errorf("read authorization: %w", err)
		}
		if authorization.Status == acme.StatusValid {
			continue // from an earlier order
		}
		domain := authorization.Identifier.Value
		i := slices.IndexFunc(authorization.Challenges, func(c *acme.Challenge) bool { return c.Type == "tls-alpn-01" })
		if i < 0 {
			return fmt.Errorf("authorize %s: the authority does not offer TLS-ALPN-01", domain)
		}
		challenge := authorization.Challenges[i]
		record.Challenges = append(record.Challenges, &proto.ACMEChallenge{Domain: domain, Token: challenge.Token})
		accepted, pending = append(accepted, challenge), append(pending, url)
	}
	if err := a.records.PutRegistryCertificate(ctx, record); err != nil {
		return fmt.Errorf("store challenges: %w", err)
	}
	for i, challenge := range accepted {
		if _, err := client.Accept(ctx, challenge); err != nil {
			return fmt.Errorf("accept challenge for %s: %w", record.Challenges[i].GetDomain(), err)
		}
	}
	for _, url := range pending {
		if _, err := client.WaitAuthorization(ctx, url); err != nil {
			return fmt.Errorf("wait for authorization: %w", err)
		}
	}
	return nil
}

// finish has the certificate signed and stores it with its key, new each time.
func (a *ACME) finish(ctx context.Context, client *acme.Client, order *acme.Order, record *proto.RegistryCertificate) error {
	key, encoded, err := newKey()
	if err != nil {
		return err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: a.cfg.Domains}, key)
	if err != nil {
		return fmt.Errorf("make signing request: %w", err)
	}
	chain, _, err := client.CreateCertFromOrder(ctx, order, request, true)
	if err != nil {
		return fmt.Errorf("have the certificate signed: %w", err)
	}
	record.Chain, record.Key, record.Challenges = chain, encoded, nil
	pair, err := parsePair(record)
	if err != nil {
		return fmt.Errorf("use the certificate that has come: %w", err)
	}
	if err := verifyNames(pair.Leaf, a.cfg.Domains); err != nil {
		return fmt.Errorf("use the certificate that has come: %w", err)
	}
	record.Failures, record.Problem = 0, ""
	if err := a.records.PutRegistryCertificate(ctx, record); err != nil {
		return fmt.Errorf("store the certificate: %w", err)
	}
	return nil
}

// noteFailure stores what went wrong, and takes back what is not to be answered any
// more. If that fails, the next attempt does it.
func (a *ACME) noteFailure(ctx context.Context, attempted *proto.RegistryCertificate, failure error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), orderNoteTimeout)
	defer cancel()
	record, err := a.records.RegistryCertificate()
	if err != nil || record.GetRevision() != attempted.GetRevision() {
		return // another node is at it
	}
	record.Challenges, record.Problem = nil, failure.Error()
	_ = a.records.PutRegistryCertificate(ctx, record)
}

// newKey makes a private key, and the form in which it is stored (PKCS #8).
func newKey() (key *ecdsa.PrivateKey, encoded []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err == nil {
		encoded, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return key, encoded, nil
}
