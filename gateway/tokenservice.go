package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/atollregistry/atoll/metadata/policy"
)

// maxTokenFormBytes bounds the form of a POST for a token.
const maxTokenFormBytes = 64 << 10

// minIssuedLife is how long a token counts at least: clients take that for granted.
const minIssuedLife = time.Minute

// tokenReply is what a client gets, as in distribution's token specification and
// RFC 6749: either name for the token, so that every client finds it.
type tokenReply struct {
	Token        string `json:"token"`
	AccessToken  string `json:"access_token"`
	ExpiresIn    int    `json:"expires_in"` // Seconds.
	IssuedAt     string `json:"issued_at"`  // RFC 3339.
	Scope        string `json:"scope,omitempty"`
	RefreshToken string `json:"refresh_token,omitempty"`
}

// getToken answers GET of a token, with Basic credentials or without any.
func (g *gateway) getToken(ctx context.Context, x *exchange) error {
	x.w.Header().Set("Cache-Control", "no-store")
	if _, err := g.catchUp(ctx, x); err != nil {
		return err
	}
	who, err := g.auth.authenticate(ctx, x)
	if err != nil {
		return x.refuseLogin(g.auth, err)
	}
	x.who, x.fresh = who, true
	if who.claims != nil || x.tokenSent && who.method != loginIssuer {
		// A token must not get another one, or it would never end.
		return x.refuseLogin(g.auth, fmt.Errorf("%w: a token is not enough to get a token", errUnauthenticated))
	}
	return g.replyToken(x, parseScopes(x.query["scope"]), x.query.Get("offline_token") == "true", "")
}

// postToken answers POST of a form with a password or a refresh token (RFC 6749
// sections 4.3 and 6).
func (g *gateway) postToken(ctx context.Context, x *exchange) error {
	x.w.Header().Set("Cache-Control", "no-store")
	form, err := x.readForm()
	if err != nil {
		return err
	}
	if _, err := g.catchUp(ctx, x); err != nil {
		return err
	}
	refresh := ""
	switch form.Get("grant_type") {
	case "password":
		x.who, err = g.auth.logIn(ctx, x, form.Get("username"), form.Get("password"))
		if err == nil && !x.who.presented {
			err = fmt.Errorf("%w: no user name and no password", errUnauthenticated)
		}
	case "refresh_token":
		refresh = form.Get("refresh_token")
		x.who, err = g.auth.refresh(refresh)
	default:
		return refuse(errTokenRequest, "grant_type is neither password nor refresh_token", nil)
	}
	if err != nil {
		return x.refuseLogin(g.auth, err)
	}
	x.fresh = true
	return g.replyToken(x, parseScopes(form["scope"]), form.Get("access_type") == "offline", refresh)
}

// readForm reads the body of a POST for a token. What the URL says does not count:
// URLs end up in logs.
func (x *exchange) readForm() (url.Values, error) {
	contentType, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || contentType != "application/x-www-form-urlencoded" {
		return nil, refuse(errTokenRequest, "the body is not application/x-www-form-urlencoded", nil)
	}
	content, err := io.ReadAll(io.LimitReader(x.body, maxTokenFormBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxTokenFormBytes {
		return nil, refuse(errTokenRequest, "the body is too long", nil)
	}
	form, err := url.ParseQuery(string(content))
	if err != nil {
		return nil, refuse(errTokenRequest, "the body is not a form", nil) // Its error would show the content.
	}
	return form, nil
}

// refresh finds out whose refresh token it is.
func (a *auth) refresh(token string) (identity, error) {
	claims, err := a.tokens.verify(refreshToken, token)
	if err != nil {
		return identity{}, tokenError(err)
	}
	who, err := a.resume(claims)
	who.claims = nil // It limits nothing by itself.
	return who, err
}

// refuseLogin adds to the reply that credentials are missing, as RFC 9110 section
// 11.6.1 wants it: Basic, which is what the token service takes.
func (x *exchange) refuseLogin(a *auth, err error) error {
	if errors.Is(err, errUnauthenticated) {
		x.w.Header().Set("WWW-Authenticate", "Basic "+quote("realm", a.Service))
	}
	return err
}

// replyToken replies with a token for as much of the scopes as the subject may do,
// and with a refresh token if one is wanted, or was brought.
func (g *gateway) replyToken(x *exchange, scopes []scope, offline bool, refresh string) error {
	claims := tokenClaims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: x.who.subject.String()}, Access: g.auth.grant(x.who.subject, scopes),
		Method: x.who.method, Generation: x.who.generation, Secret: x.who.secret,
	}
	life := g.auth.TokenLife
	if x.who.method == loginIssuer {
		claims.Groups = x.who.subject.Groups
		life = min(life, x.who.until.Sub(g.now())) // What it stands on ends then.
	}
	token, issued, err := g.auth.tokens.issue(accessToken, claims, max(life, minIssuedLife))
	if err != nil {
		return fmt.Errorf("issue token: %w", err)
	}
	x.who.tokenID, x.granted = issued.ID, formatAccess(claims.Access)
	reply := tokenReply{
		Token: token, AccessToken: token, IssuedAt: issued.IssuedAt.UTC().Format(time.RFC3339), RefreshToken: refresh,
		ExpiresIn: int(issued.ExpiresAt.Sub(issued.IssuedAt.Time).Seconds()), Scope: x.granted,
	}
	// Nobody can say of another issuer's user whether he is still there, and a certificate
	// is to end when it says so.
	if kept := []loginMethod{loginPassword, loginRobot, loginHtpasswd}; offline && refresh == "" && slices.Contains(kept, x.who.method) {
		claims.Access = nil
		if reply.RefreshToken, _, err = g.auth.tokens.issue(refreshToken, claims, g.auth.RefreshLife); err != nil {
			return fmt.Errorf("issue refresh token: %w", err)
		}
	}
	return x.replyJSON(http.StatusOK, "application/json", reply)
}

// grant returns what of the scopes the subject may do now. What nobody can ask for,
// and what the subject has no right to, is left out: the client gets to know when it
// tries.
func (a *auth) grant(subject policy.Subject, scopes []scope) (granted []tokenAccess) {
	current := a.Accounts.LocalPolicy()
	for _, asked := range scopes {
		var actions []string
		switch {
		case asked.kind == scopeRegistry && asked.name == scopeCatalog && asked.wants(actionAll):
			actions = []string{actionAll}
		case asked.kind == scopeRepository && validRepository(asked.name):
			rights := current.Rights(subject, asked.name)
			for _, action := range []string{actionPull, actionPush, actionDelete} {
				if asked.wants(action) && rights.Has(actionRights[action]) {
					actions = append(actions, action)
				}
			}
		}
		granted = mergeAccess(granted, tokenAccess{Type: asked.kind, Name: asked.name, Actions: actions})
	}
	return granted
}

// mergeAccess adds an entry, or its actions to the entry about the same.
func mergeAccess(granted []tokenAccess, more tokenAccess) []tokenAccess {
	if len(more.Actions) == 0 {
		return granted
	}
	i := slices.IndexFunc(granted, func(have tokenAccess) bool { return have.Type == more.Type && have.Name == more.Name })
	if i < 0 {
		return append(granted, more)
	}
	for _, action := range more.Actions {
		if !slices.Contains(granted[i].Actions, action) {
			granted[i].Actions = append(granted[i].Actions, action)
		}
	}
	return granted
}

// formatAccess writes what was granted as scopes.
func formatAccess(granted []tokenAccess) (scopes string) {
	for i, access := range granted {
		if i > 0 {
			scopes += " "
		}
		scopes += scope{kind: access.Type, name: access.Name, actions: access.Actions}.String()
	}
	return scopes
}
