package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/atollregistry/atoll/metadata/policy"
)

// Issuer is somebody else who says who people and programs are, by OpenID Connect
// tokens: a company's login, or what runs its pipelines.
type Issuer struct {
	// URL is the issuer as its tokens name it. Below it is its discovery document.
	URL string
	// Audience is who a token must be for.
	Audience string
	// UsernameClaim and GroupsClaim have the name and the groups. Default "sub"; no
	// groups without.
	UsernameClaim, GroupsClaim string
	// RequiredClaim, NAME=VALUE, is what a token must say; empty for nothing. Of an issuer
	// that gives tokens to anybody, it tells ours from strangers.
	RequiredClaim string
	// Prefix stands before the names and groups in policies, so that no issuer can
	// name an account of atoll's.
	Prefix string
}

const (
	// issuerTimeout bounds one request to an issuer.
	issuerTimeout = 5 * time.Second
	// issuerPause is how long after a failure the next request waits at least.
	issuerPause = 10 * time.Second
	// maxIssuerBytes bounds what an issuer may answer.
	maxIssuerBytes = 1 << 20
	// maxIssuerTokens is how many tokens of one issuer are remembered as verified.
	maxIssuerTokens = 1 << 12
	// maxIssuerGroups bounds the groups that count, since they are kept in tokens.
	maxIssuerGroups = 100
)

// Requests to one issuer in the long run, and at once. A token with an unknown key
// makes one, and anybody can make up such a token.
const (
	issuerRequestsPerMinute = 6
	issuerRequestBurst      = 6
)

// issuerAlgorithms are the signatures that count; none with a shared secret.
var issuerAlgorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// issuer checks the tokens of one Issuer. Its keys are fetched when they are first
// needed; nobody waits for that but who has a token of this issuer.
type issuer struct {
	Issuer
	client *http.Client
	now    func() time.Time
	open   singleflight.Group
	// verified has what tokens said that were found right.
	verified *lru.Cache[[sha256.Size]byte, external]

	mu       sync.Mutex // guards what follows
	verifier *oidc.IDTokenVerifier
	failure  error
	retryAt  time.Time
}

// external is who an issuer's token is about.
type external struct {
	subject policy.Subject
	// tokenID is the token's "jti", which it need not have.
	tokenID string
	until   time.Time
}

func newIssuer(cfg Issuer, now func() time.Time) *issuer {
	verified, err := lru.New[[sha256.Size]byte, external](maxIssuerTokens)
	if err != nil {
		panic(err) // Unreachable: it only fails for a size that is not positive.
	}
	if cfg.UsernameClaim == "" {
		cfg.UsernameClaim = "sub"
	}
	transport := &boundedTransport{rate: rate.NewLimiter(rate.Limit(issuerRequestsPerMinute)/60, issuerRequestBurst), next: http.DefaultTransport}
	return &issuer{Issuer: cfg, client: &http.Client{Timeout: issuerTimeout, Transport: transport}, now: now, verified: verified}
}

// verify returns who a token is about. It fails with errTokenMalformed,
// errTokenExpired, or errIssuerUnavailable.
func (i *issuer) verify(ctx context.Context, token string) (external, error) {
	hash := sha256.Sum256([]byte(token))
	if known, found := i.verified.Get(hash); found {
		if !i.now().Before(known.until) {
			return external{}, errTokenExpired
		}
		return known, nil
	}
	verifier, err := i.connect(ctx)
	if err != nil {
		return external{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	var keysErr error
	verified, err := verifier.Verify(context.WithValue(ctx, keysErrorKey{}, &keysErr), token)
	var expired *oidc.TokenExpiredError
	switch {
	case errors.As(err, &expired):
		return external{}, errTokenExpired
	case errors.Is(keysErr, errIssuerUnavailable) || ctx.Err() != nil:
		return external{}, fmt.Errorf("get keys of issuer %s: %w", i.URL, errIssuerUnavailable)
	case err != nil:
		return external{}, fmt.Errorf("%w: issuer %s: %w", errTokenMalformed, i.URL, err)
	}
	who, err := i.identify(verified)
	if err != nil {
		return external{}, fmt.Errorf("%w: issuer %s: %w", errTokenMalformed, i.URL, err)
	}
	i.verified.Add(hash, who)
	return who, nil
}

// connect returns what checks tokens. The first call asks the issuer where its keys
// are; after a failure the next one waits.
func (i *issuer) connect(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	i.mu.Lock()
	verifier, failure := i.verifier, i.failure
	early := i.now().Before(i.retryAt)
	i.mu.Unlock()
	switch {
	case verifier != nil:
		return verifier, nil
	case early:
		return nil, failure
	}
	answer := i.open.DoChan("", func() (any, error) {
		// For all who wait, and for the keys later on. The client has a timeout.
		keys, err := i.discover(oidc.ClientContext(context.Background(), i.client))
		i.mu.Lock()
		defer i.mu.Unlock()
		if err != nil {
			i.failure = fmt.Errorf("find issuer %s: %w: %w", i.URL, errIssuerUnavailable, err)
			i.retryAt = i.now().Add(issuerPause)
			return nil, i.failure
		}
		i.verifier = oidc.NewVerifier(i.URL, keys, &oidc.Config{ClientID: i.Audience, SupportedSigningAlgs: issuerAlgorithms, Now: i.now})
		return i.verifier, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case result := <-answer:
		verifier, _ := result.Val.(*oidc.IDTokenVerifier)
		return verifier, result.Err
	}
}

// discover asks the issuer where its keys are.
func (i *issuer) discover(ctx context.Context) (oidc.KeySet, error) {
	provider, err := oidc.NewProvider(ctx, i.URL)
	if err != nil {
		return nil, err
	}
	var document struct {
		Keys string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, err
	}
	return tellingKeys{oidc.NewRemoteKeySet(ctx, document.Keys)}, nil
}

// tellingKeys puts why keys could not be had where the context says: the verifier
// does not wrap that error.
type tellingKeys struct{ oidc.KeySet }

type keysErrorKey struct{}

// VerifySignature implements oidc.KeySet.
func (k tellingKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := k.KeySet.VerifySignature(ctx, token)
	if into, asked := ctx.Value(keysErrorKey{}).(*error); asked {
		*into = err
	}
	return payload, err
}

// identify makes a subject of a token's claims.
func (i *issuer) identify(token *oidc.IDToken) (external, error) {
	claims := make(map[string]any)
	if err := token.Claims(&claims); err != nil {
		return external{}, fmt.Errorf("read claims: %w", err)
	}
	if required, value, _ := strings.Cut(i.RequiredClaim, "="); required != "" && !claimHas(claims[required], value) {
		return external{}, fmt.Errorf("claim %q is not %q", required, value)
	}
	name, _ := claims[i.UsernameClaim].(string)
	if name == "" {
		return external{}, fmt.Errorf("claim %q has no name", i.UsernameClaim)
	}
	if verified, found := claims["email_verified"]; i.UsernameClaim == "email" && found && verified != true {
		return external{}, errors.New("the address is not verified")
	}
	subject, err := policy.ParseSubject("user:" + i.Prefix + name)
	if err != nil {
		return external{}, fmt.Errorf("claim %q: %w", i.UsernameClaim, err)
	}
	switch groups := claims[i.GroupsClaim].(type) {
	case string:
		subject.Groups = []string{i.Prefix + groups}
	case []any:
		for _, group := range groups {
			if text, is := group.(string); is && text != "" && len(subject.Groups) < maxIssuerGroups {
				subject.Groups = append(subject.Groups, i.Prefix+text)
			}
		}
	}
	id, _ := claims["jti"].(string)
	return external{subject: subject, tokenID: id, until: token.Expiry}, nil
}

// claimHas reports whether a claim is a text, or a list with it.
func claimHas(claim any, text string) bool {
	list, is := claim.([]any)
	return claim == any(text) || is && slices.Contains(list, any(text))
}

// boundedTransport bounds how often an issuer is asked and how much it may answer.
type boundedTransport struct {
	rate *rate.Limiter
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !t.rate.Allow() {
		return nil, fmt.Errorf("%w: it was asked too often", errIssuerUnavailable)
	}
	response, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errIssuerUnavailable, err)
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(response.Body, maxIssuerBytes), response.Body}
	return response, nil
}
