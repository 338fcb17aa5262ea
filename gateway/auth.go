package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

// Accounts says who can log in and who may do what, as far as this node knows. After
// CatchUp that is everything that was changed on any node before.
type Accounts interface {
	// LocalAccount fails with ErrAccountUnknown.
	LocalAccount(name string) (*proto.Account, error)
	// LocalPolicy is the policy in force.
	LocalPolicy() *policy.Compiled
	// TokenKeys are what tokens are signed with, the newest first.
	TokenKeys() []*proto.TokenKey
	// CatchUp fails with ErrUnavailable.
	CatchUp(ctx context.Context) error
	// CatchUpForContent is CatchUp for reads by digest: without a quorum it does not
	// fail, but calls metadata.NoteStale.
	CatchUpForContent(ctx context.Context) error
	// CatchUpForNames is CatchUp for reads of tags and lists: it is CatchUpForContent if
	// the operator prefers an old answer to none.
	CatchUpForNames(ctx context.Context) error
}

// AuthConfig is how clients log in. Zero fields take the defaults.
type AuthConfig struct {
	// Accounts are the cluster's.
	Accounts Accounts
	// Service is what tokens are for: the registry's name. The same on all nodes.
	// Default "atoll".
	Service string
	// Realm is the URL of the token service as clients reach it. By default it is
	// /token at the host that the client asked.
	Realm string
	// TokenLife is how long an access token counts. At least a minute, which clients
	// take for granted. Default 30 min.
	TokenLife time.Duration
	// RefreshLife is how long a client can get access tokens without the password.
	// Default 30 days.
	RefreshLife time.Duration
	// Htpasswd are users besides the accounts; nil for none. An account hides the user of
	// its name.
	Htpasswd *Htpasswd
	// Issuers are others whose tokens count.
	Issuers []Issuer
}

// Lives of tokens by default.
const (
	defaultTokenLife   = 30 * time.Minute
	defaultRefreshLife = 30 * 24 * time.Hour
)

// maxNameBytes is how long the name of somebody who logs in may be.
const maxNameBytes = policy.MaxNameBytes

// IssuerUser is the user name for logging in with the token of an Issuer as password.
// No account can have it.
const IssuerUser = "_oidc"

// loginMethod is how somebody has logged in.
type loginMethod string

const (
	loginNone     loginMethod = "anonymous"
	loginPassword loginMethod = "password"
	loginRobot    loginMethod = "robot"
	loginHtpasswd loginMethod = "htpasswd"
	loginIssuer   loginMethod = "oidc"
	// loginCertificate is a TLS certificate of the client's.
	loginCertificate loginMethod = "certificate"
)

// identity is who asks.
type identity struct {
	subject policy.Subject
	method  loginMethod
	// generation and secret are of the account when it logged in, see tokenClaims.
	generation uint64
	secret     string
	// claims are of the token that came with the request; nil for credentials, which
	// allow all that the subject may do. Not to be changed.
	claims *tokenClaims
	// tokenID names a token in the log.
	tokenID string
	// presented is false if there were no credentials at all.
	presented bool
	// until is when what the subject logged in with ends; zero for not known.
	until time.Time
}

// auth finds out who asks.
type auth struct {
	AuthConfig
	tokens   *tokens
	hasher   *hasher
	throttle *throttle
	// tries are the passwords that are being looked at, by client.
	tries   singleflight.Group
	issuers map[string]*issuer
	now     func() time.Time
}

func newAuth(cfg AuthConfig, m *metrics, now func() time.Time) *auth {
	if cfg.Service == "" {
		cfg.Service = "atoll"
	}
	cfg.TokenLife = positive(cfg.TokenLife, defaultTokenLife)
	cfg.RefreshLife = positive(cfg.RefreshLife, defaultRefreshLife)
	a := &auth{
		AuthConfig: cfg, tokens: newTokens(cfg.Accounts.TokenKeys, cfg.Service, now), issuers: make(map[string]*issuer), now: now,
		hasher: newHasher(m.limit("logins"), now), throttle: newThrottle(m.limit("failed_logins")),
	}
	a.hasher.cost = func() int { return max(metadata.PasswordCost, cfg.Htpasswd.maxCost()) }
	for _, known := range cfg.Issuers {
		a.issuers[known.URL] = newIssuer(known, now)
	}
	return a
}

// authenticate finds out who sent a request. It fails with errUnauthenticated if
// the credentials are not right; without any, the identity is anonymous. What
// this node knows of accounts must be up to date.
func (a *auth) authenticate(ctx context.Context, x *exchange) (identity, error) {
	header, single := one(x.r.Header.Values("Authorization"))
	if !single {
		return identity{}, refuse(errUnauthenticated, "there are several Authorization headers", nil)
	}
	scheme, credentials, _ := strings.Cut(header, " ")
	credentials = strings.TrimSpace(credentials)
	switch {
	case header == "" && x.certified != "":
		return a.certified(x.certified)
	case header == "":
		return identity{method: loginNone}, nil
	case strings.EqualFold(scheme, "Basic"):
		name, password, ok := parseBasic(credentials)
		if !ok {
			return identity{}, fmt.Errorf("%w: malformed Basic credentials", errUnauthenticated)
		}
		return a.logIn(ctx, x, name, password)
	case strings.EqualFold(scheme, "Bearer"):
		x.tokenSent = true
		return a.bearer(ctx, x, credentials)
	}
	return identity{}, fmt.Errorf("%w: unknown scheme", errUnauthenticated)
}

// parseBasic reads the credentials of RFC 7617.
func parseBasic(credentials string) (name, password string, ok bool) {
	decoded, err := base64.StdEncoding.DecodeString(credentials)
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(decoded), ":")
}

// certified is the identity of the account that a client's certificate names. There
// must be one: to delete or disable it is the way to take the certificate's rights.
func (a *auth) certified(name string) (identity, error) {
	account, err := a.account(name)
	if err != nil {
		return identity{}, err
	}
	if account == nil {
		return identity{}, fmt.Errorf("%w: the certificate is for %q, who has no account", errUnauthenticated, name)
	}
	return identity{subject: metadata.SubjectOf(account), method: loginCertificate, generation: account.GetGeneration(), presented: true}, nil
}

// bearer finds out whose token it is.
func (a *auth) bearer(ctx context.Context, x *exchange, token string) (identity, error) {
	if known := a.issuerOf(token); known != nil {
		return a.external(ctx, known, token)
	}
	claims, err := a.tokens.verify(accessToken, token)
	if errors.Is(err, errTokenExpired) && x.outlivesToken(claims.ExpiresAt.Time, a.now()) {
		x.outlived, err = true, nil
	}
	if errors.Is(err, errTokenKey) && x.stale.Happened() {
		// It may be a key that the others have made meanwhile.
		return identity{}, fmt.Errorf("look for a token's key: %w", metadata.ErrUnavailable)
	}
	if err != nil {
		return identity{}, tokenError(err)
	}
	return a.resume(claims)
}

// issuerOf returns the issuer that a token says it is from; nil if that is none of the
// known ones, such as atoll itself.
func (a *auth) issuerOf(token string) *issuer {
	if len(a.issuers) == 0 || a.tokens.known(token) {
		return nil // What has to be fast.
	}
	return a.issuers[tokenIssuerOf(token)]
}

// tokenError makes a refusal of what is wrong with a token; other errors pass.
func tokenError(err error) error {
	for _, refused := range []error{errTokenMalformed, errTokenExpired, errTokenKey} {
		if errors.Is(err, refused) {
			return fmt.Errorf("%w: %w", errUnauthenticated, err)
		}
	}
	return err
}

// external finds out whose token of another issuer it is.
func (a *auth) external(ctx context.Context, from *issuer, token string) (identity, error) {
	who, err := from.verify(ctx, token)
	if err != nil {
		return identity{}, tokenError(err)
	}
	return identity{subject: who.subject, method: loginIssuer, tokenID: who.tokenID, presented: true, until: who.until}, nil
}

// resume makes an identity of a token's claims, if whoever logged in then could do
// so now: the account is still there, enabled, and of the same generation.
func (a *auth) resume(claims *tokenClaims) (identity, error) {
	who := identity{
		method: claims.Method, generation: claims.Generation, secret: claims.Secret, claims: claims, tokenID: claims.ID, presented: true,
		until: claims.ExpiresAt.Time,
	}
	subject, err := policy.ParseSubject(claims.Subject)
	if err != nil {
		return identity{}, fmt.Errorf("%w: %w", errUnauthenticated, err)
	}
	who.subject = subject
	switch claims.Method {
	case loginNone:
		who.subject = policy.Subject{}
		return who, nil
	case loginIssuer:
		who.subject.Groups = claims.Groups
		return who, nil
	case loginHtpasswd:
		return who, a.checkHtpasswd(subject.Name, claims.Generation)
	case loginPassword, loginRobot, loginCertificate:
		account, err := a.account(subject.Name)
		if err != nil {
			return identity{}, err
		}
		if account == nil || metadata.SubjectOf(account).Kind != subject.Kind || account.GetGeneration() != claims.Generation || !hasSecret(account, claims.Secret, a.now()) {
			return identity{}, fmt.Errorf("%w: the token of %s was revoked", errUnauthenticated, claims.Subject)
		}
		who.subject = metadata.SubjectOf(account)
		return who, nil
	}
	return identity{}, fmt.Errorf("%w: unknown method %q", errUnauthenticated, claims.Method)
}

// checkHtpasswd fails unless the user of the password file has the same password
// as when the token was made.
func (a *auth) checkHtpasswd(name string, generation uint64) error {
	account, err := a.Accounts.LocalAccount(name)
	if err != nil && !errors.Is(err, metadata.ErrAccountUnknown) {
		return fmt.Errorf("look up account: %w", err)
	}
	hash := a.Htpasswd.hash(name)
	if account != nil || hash == nil || generationOf(hash) != generation {
		return fmt.Errorf("%w: user %q of the password file has changed", errUnauthenticated, name)
	}
	return nil
}

// account returns an account that can log in; nil if there is none.
func (a *auth) account(name string) (*proto.Account, error) {
	account, err := a.Accounts.LocalAccount(name)
	switch {
	case errors.Is(err, metadata.ErrAccountUnknown):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look up account: %w", err)
	case account.GetDisabled():
		return nil, nil
	}
	return account, nil
}

// hasSecret reports whether an account still has a secret; without an id it is
// about a password, which the generation stands for.
func hasSecret(account *proto.Account, id string, now time.Time) bool {
	if id == "" {
		return true
	}
	for _, secret := range account.GetSecrets() {
		if secret.GetId() == id {
			return !isOver(secret, now)
		}
	}
	return false
}

func isOver(secret *proto.AccountSecret, now time.Time) bool {
	expires := secret.GetExpiresUnixMs()
	return expires != 0 && now.UnixMilli() >= expires
}

// outlivedFor is how long an upload may go on with a token that has expired.
const outlivedFor = 24 * time.Hour

// outlivesToken reports whether a request may be made with a token that expired:
// the next step of an upload that has bytes, which only whoever began it can take. Clients can't
// get another token in the middle of a push that takes hours.
func (x *exchange) outlivesToken(expired, now time.Time) bool {
	step := x.r.Method == http.MethodPatch || x.r.Method == http.MethodPut
	return x.operation == opUpload && step && now.Sub(expired) < outlivedFor
}
