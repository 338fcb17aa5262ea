package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/gateway"
	"github.com/atollregistry/atoll/metadata"
)

// AuthConfig is about clients that log in.
type AuthConfig struct {
	// Enabled has clients log in and do what the cluster's policy says. Otherwise
	// everybody may do everything.
	Enabled bool `koanf:"enabled"`
	// Service is the registry's name in tokens. The same on all nodes.
	Service string `koanf:"service"`
	// Realm is the URL of the token service as clients reach it; empty for /token on the
	// host that the client asked.
	Realm string `koanf:"realm"`
	// TokenLife is how long a client can use a token.
	TokenLife time.Duration `koanf:"token-life"`
	// RefreshLife is how long a client can get further tokens without the password.
	RefreshLife time.Duration `koanf:"refresh-life"`
	// Htpasswd is a file with users besides the accounts, bcrypt. The same on all nodes.
	Htpasswd string `koanf:"htpasswd"`
	// Issuers are others whose OpenID Connect tokens count.
	Issuers []IssuerConfig `koanf:"issuers"`
}

// IssuerConfig is one issuer of OpenID Connect tokens.
type IssuerConfig struct {
	// Issuer is the URL that its tokens name, with a discovery document below.
	Issuer string `koanf:"issuer"`
	// Audience is who its tokens must be for.
	Audience string `koanf:"audience"`
	// UsernameClaim has the name of a token's subject. Default: sub.
	UsernameClaim string `koanf:"username-claim"`
	// RequiredClaim, NAME=VALUE, is what its tokens must say, besides.
	RequiredClaim string `koanf:"required-claim"`
	// GroupsClaim has the groups; without it there are none.
	GroupsClaim string `koanf:"groups-claim"`
	// Prefix stands before the names and groups in policies. It ends with a colon, which
	// no name of an account has.
	Prefix string `koanf:"prefix"`
}

// AuditConfig is about the log of who did what.
type AuditConfig struct {
	// File is where it is written, one JSON object a line; "-" for standard output, empty
	// for nowhere. It may be moved away at any time: it is made anew then.
	File string `koanf:"file"`
	// Pulls has what is read written down, too.
	Pulls bool `koanf:"pulls"`
}

// minTokenLife is what clients take for granted.
const minTokenLife = time.Minute

func defaultAuth() AuthConfig {
	return AuthConfig{Enabled: true, Service: "atoll", TokenLife: 30 * time.Minute, RefreshLife: 30 * 24 * time.Hour}
}

func (c *AuthConfig) validate() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Service == "" || strings.ContainsAny(c.Service, `"\`) || strings.ContainsFunc(c.Service, func(r rune) bool { return r <= ' ' || r > '~' }) {
		fault("auth.service: %q is not a name of visible ASCII characters without quotes", c.Service)
	}
	if c.Realm != "" {
		if u, err := url.Parse(c.Realm); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || strings.ContainsAny(c.Realm, "\"\\ ") {
			fault("auth.realm: %q is not an http or https URL", c.Realm)
		}
	}
	if c.TokenLife < minTokenLife {
		fault("auth.token-life: %s is less than %s, which clients take for granted", c.TokenLife, minTokenLife)
	}
	if c.RefreshLife < c.TokenLife || c.RefreshLife > metadata.TokenKeyLife {
		fault("auth.refresh-life: %s is not between auth.token-life and %s, after which the cluster forgets the key", c.RefreshLife, metadata.TokenKeyLife)
	}
	seen := make(map[string]bool)
	for i, issuer := range c.Issuers {
		for _, err := range issuer.validate() {
			fault("auth.issuers: number %d: %w", i+1, err)
		}
		if seen[issuer.Issuer] {
			fault("auth.issuers: number %d: %s is there twice", i+1, issuer.Issuer)
		}
		seen[issuer.Issuer] = true
		for j, other := range c.Issuers[:i] {
			if strings.HasPrefix(issuer.Prefix, other.Prefix) || strings.HasPrefix(other.Prefix, issuer.Prefix) {
				fault("auth.issuers: number %d: prefix %q and that of number %d, %q, begin alike: one could make up users of the other", i+1, issuer.Prefix, j+1, other.Prefix)
			}
		}
	}
	return faults
}

// openIssuers give tokens to whoever makes an account there.
var openIssuers = []string{"https://token.actions.githubusercontent.com", "https://gitlab.com", "https://accounts.google.com"}

func (c *IssuerConfig) validate() (faults []error) {
	u, err := url.Parse(c.Issuer)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		faults = append(faults, fmt.Errorf("issuer: %q is not an https URL", c.Issuer))
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		faults = append(faults, fmt.Errorf("issuer: %q is plain HTTP, by which anybody on the way could make up keys: use https", c.Issuer))
	}
	if name, value, found := strings.Cut(c.RequiredClaim, "="); c.RequiredClaim != "" && (!found || name == "" || value == "") {
		faults = append(faults, fmt.Errorf("required-claim: %q is not NAME=VALUE", c.RequiredClaim))
	}
	if c.RequiredClaim == "" && slices.Contains(openIssuers, strings.TrimSuffix(c.Issuer, "/")) {
		faults = append(faults, fmt.Errorf("required-claim: none given: %s gives tokens, for any audience, to everybody in the world, who could then do what \"authenticated\" may: name a claim that only yours have, such as repository_owner=NAME", c.Issuer))
	}
	if c.Audience == "" {
		faults = append(faults, errors.New("audience: none given: tokens that are meant for others would count"))
	}
	if len(c.Prefix) < 2 || !strings.HasSuffix(c.Prefix, ":") || strings.ContainsAny(c.Prefix, "*?") {
		faults = append(faults, fmt.Errorf("prefix: %q is not a word with a colon behind, such as \"sso:\", which tells its users from accounts", c.Prefix))
	}
	return faults
}

func isLoopback(host string) bool {
	address := net.ParseIP(host)
	return host == "localhost" || address != nil && address.IsLoopback()
}

// openAuth makes what the gateway needs to have clients log in; nil if they need not.
func (p *parts) openAuth() (*gateway.AuthConfig, error) {
	cfg := p.cfg.Auth
	if !cfg.Enabled {
		p.log.Warn().Msg("clients need not log in: everybody may read, write and delete everything (auth.enabled is false)")
		return nil, nil
	}
	auth := &gateway.AuthConfig{
		Accounts: p.store, Service: cfg.Service, Realm: cfg.Realm, TokenLife: cfg.TokenLife, RefreshLife: cfg.RefreshLife,
	}
	if cfg.Htpasswd != "" {
		users, err := gateway.OpenHtpasswd(cfg.Htpasswd, p.component("gateway"))
		if err != nil {
			return nil, fmt.Errorf("auth.htpasswd: %w", err)
		}
		auth.Htpasswd, p.htpasswd = users, users
	}
	for _, issuer := range cfg.Issuers {
		auth.Issuers = append(auth.Issuers, gateway.Issuer{
			URL: issuer.Issuer, Audience: issuer.Audience, UsernameClaim: issuer.UsernameClaim, GroupsClaim: issuer.GroupsClaim, Prefix: issuer.Prefix, RequiredClaim: issuer.RequiredClaim,
		})
	}
	return auth, nil
}

// openAudit opens the audit log; nil for none.
func (p *parts) openAudit() (*gateway.AuditLog, error) {
	if p.cfg.Audit.File == "" {
		return nil, nil
	}
	log, err := gateway.OpenAuditLog(p.cfg.Audit.File, p.cfg.Name, p.component("audit"))
	if err != nil {
		return nil, fmt.Errorf("audit.file: %w", err)
	}
	p.closers = append(p.closers, log.Close)
	return log, nil
}

// followAuth follows the files that logins depend on until work ends.
func (p *parts) followAuth(work context.Context, group *errgroup.Group) {
	if p.htpasswd != nil {
		group.Go(func() error { return p.htpasswd.Run(work) })
	}
}
