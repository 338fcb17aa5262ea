package gateway

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/atollregistry/atoll/proto"
)

// A token is a JSON Web Token that any node makes and any node checks, signed by
// Ed25519 with one of the keys that the cluster shares. An access token says what its
// bearer may do at most; what the account may do is looked up at each request. A
// refresh token only gets access tokens. Their type, audience and content differ, so
// that one can't be taken for the other.

// tokenKind tells what a token is good for.
type tokenKind struct {
	// header is the token's "typ" (RFC 9068 has the first one).
	header string
	// audience is added to the service's name.
	audience string
}

var (
	accessToken  = tokenKind{header: "at+jwt"}
	refreshToken = tokenKind{header: "rt+jwt", audience: "/refresh"}
)

const (
	// tokenIssuer is who all tokens say they are from.
	tokenIssuer = "atoll"
	// tokenSkew is how far the clocks of two nodes may be apart.
	tokenSkew = time.Minute
	// maxTokenBytes bounds what is taken for a token at all. One with as many scopes and
	// groups as there can be, all of the longest names, has 56 KB.
	maxTokenBytes = 64 << 10
	// maxVerifiedTokens is how many tokens are remembered as well signed, if they have
	// no more than maxVerifiedBytes: most have less than 1 KB, and so about 30 MB do.
	maxVerifiedTokens = 1 << 14
	maxVerifiedBytes  = 4 << 10
	// maxKnownKeys is for keys in use and the one before.
	maxKnownKeys = 16
)

// Why a token is not taken.
var (
	errTokenMalformed = errors.New("token is not valid")
	errTokenExpired   = errors.New("token has expired")
	// errTokenKey: it may be well signed with a key that this node does not know.
	errTokenKey = errors.New("token's key is unknown")
	// errNoTokenKey: the cluster has none, as in its first seconds.
	errNoTokenKey = errors.New("no key to sign tokens with yet")
)

// tokenAccess is one entry of a token's access claim, as in distribution's token
// specification.
type tokenAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// tokenClaims is what a token says.
type tokenClaims struct {
	jwt.RegisteredClaims
	// Access is what the bearer may do at most.
	Access []tokenAccess `json:"access,omitempty"`
	// Method is how the subject has logged in.
	Method loginMethod `json:"amr"`
	// Generation is the account's when it logged in; one of a password file is made
	// from the password's hash.
	Generation uint64 `json:"gen,omitempty"`
	// Secret is the id of the secret that a robot logged in with.
	Secret string `json:"sec,omitempty"`
	// Groups are those of a subject that has no account here.
	Groups []string `json:"groups,omitempty"`
}

// tokens makes and checks tokens.
type tokens struct {
	keys    func() []*proto.TokenKey
	service string
	now     func() time.Time
	// verified has tokens whose signature and content were found right.
	verified *lru.Cache[[sha256.Size]byte, verifiedToken]
	// private are keys made of their seeds, by seed.
	private *lru.Cache[string, ed25519.PrivateKey]
}

type verifiedToken struct {
	claims *tokenClaims // Shared: not to be changed.
	key    uint32
}

func newTokens(keys func() []*proto.TokenKey, service string, now func() time.Time) *tokens {
	verified, err := lru.New[[sha256.Size]byte, verifiedToken](maxVerifiedTokens)
	if err != nil {
		panic(err) // Unreachable: it only fails for a size that is not positive.
	}
	private, err := lru.New[string, ed25519.PrivateKey](maxKnownKeys)
	if err != nil {
		panic(err) // Unreachable: see above.
	}
	return &tokens{keys: keys, service: service, now: now, verified: verified, private: private}
}

// issue completes the claims and signs them. It fails with errNoTokenKey.
func (t *tokens) issue(kind tokenKind, claims tokenClaims, life time.Duration) (token string, issued tokenClaims, err error) {
	keys := t.keys()
	if len(keys) == 0 {
		return "", claims, errNoTokenKey
	}
	private, err := t.privateKey(keys[0])
	if err != nil {
		return "", claims, err
	}
	now := t.now()
	claims.RegisteredClaims = jwt.RegisteredClaims{
		Issuer: tokenIssuer, Audience: jwt.ClaimStrings{t.service + kind.audience}, Subject: claims.Subject, ID: uuid.NewString(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-tokenSkew)), ExpiresAt: jwt.NewNumericDate(now.Add(life)),
	}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	unsigned.Header["typ"], unsigned.Header["kid"] = kind.header, strconv.FormatUint(uint64(keys[0].GetId()), 10)
	token, err = unsigned.SignedString(private)
	if err != nil {
		return "", claims, fmt.Errorf("sign token: %w", err)
	}
	return token, claims, nil
}

// verify returns what a token of ours says. It fails with errTokenMalformed,
// errTokenKey, or errTokenExpired, with which the claims are returned as well.
func (t *tokens) verify(kind tokenKind, token string) (*tokenClaims, error) {
	keys := t.keys()
	hash := kind.hash(token)
	known, found := t.verified.Get(hash)
	if !found {
		var err error
		if known, err = t.verifySignature(kind, token, keys); err != nil {
			return nil, err
		}
		if len(token) <= maxVerifiedBytes {
			t.verified.Add(hash, known)
		}
	}
	if findTokenKey(keys, known.key) == nil {
		return nil, errTokenKey
	}
	now := t.now()
	switch {
	case now.Before(known.claims.NotBefore.Time):
		return nil, fmt.Errorf("%w: it is not valid yet", errTokenMalformed)
	case !now.Before(known.claims.ExpiresAt.Time):
		return known.claims, errTokenExpired
	}
	return known.claims, nil
}

// known reports whether an access token was found to be one of ours before.
func (t *tokens) known(token string) bool { return t.verified.Contains(accessToken.hash(token)) }

// hash is what a token is remembered by.
func (k tokenKind) hash(token string) [sha256.Size]byte {
	return sha256.Sum256([]byte(k.header + " " + token))
}

// verifySignature checks everything about a token but the time.
func (t *tokens) verifySignature(kind tokenKind, token string, keys []*proto.TokenKey) (v verifiedToken, err error) {
	if len(token) > maxTokenBytes {
		return v, fmt.Errorf("%w: it is too long", errTokenMalformed)
	}
	v.claims = &tokenClaims{}
	// The time is looked at on each use.
	parser := jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithoutClaimsValidation(), jwt.WithStrictDecoding())
	parsed, err := parser.ParseWithClaims(token, v.claims, func(unverified *jwt.Token) (any, error) {
		id, _ := unverified.Header["kid"].(string)
		number, err := strconv.ParseUint(id, 10, 32)
		key := findTokenKey(keys, uint32(number))
		if err != nil || key == nil {
			return nil, errTokenKey
		}
		private, err := t.privateKey(key)
		if err != nil {
			return nil, err
		}
		v.key = key.GetId()
		return private.Public(), nil
	})
	switch {
	case errors.Is(err, errTokenKey):
		return v, errTokenKey
	case err != nil:
		return v, fmt.Errorf("%w: %w", errTokenMalformed, err)
	}
	c := v.claims
	typ, _ := parsed.Header["typ"].(string)
	if typ != kind.header || c.Issuer != tokenIssuer || !slices.Equal(c.Audience, jwt.ClaimStrings{t.service + kind.audience}) {
		return v, fmt.Errorf("%w: it is for something else", errTokenMalformed)
	}
	if c.Subject == "" || c.ID == "" || c.ExpiresAt == nil || c.NotBefore == nil {
		return v, fmt.Errorf("%w: it is incomplete", errTokenMalformed)
	}
	return v, nil
}

// privateKey makes a key of its seed, once.
func (t *tokens) privateKey(key *proto.TokenKey) (ed25519.PrivateKey, error) {
	seed := string(key.GetSeed())
	if private, found := t.private.Get(seed); found {
		return private, nil
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("token key %d has a seed of %d bytes", key.GetId(), len(seed))
	}
	private := ed25519.NewKeyFromSeed(key.GetSeed())
	t.private.Add(seed, private)
	return private, nil
}

func findTokenKey(keys []*proto.TokenKey, id uint32) *proto.TokenKey {
	if i := slices.IndexFunc(keys, func(key *proto.TokenKey) bool { return key.GetId() == id }); i >= 0 {
		return keys[i]
	}
	return nil
}

// tokenIssuerOf returns who an unverified token says it is from; empty for what is
// no token.
func tokenIssuerOf(token string) string {
	if len(token) > maxTokenBytes {
		return ""
	}
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil {
		return ""
	}
	return claims.Issuer
}
