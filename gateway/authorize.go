package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/metadata/policy"
)

// neededRights is what a request takes, by what its path is about and its method: the
// one place where that is said. What is not here about a repository is refused.
var neededRights = map[operation]map[string]policy.Rights{
	opTags:      {http.MethodGet: policy.Pull, http.MethodHead: policy.Pull},
	opReferrers: {http.MethodGet: policy.Pull, http.MethodHead: policy.Pull},
	opBlob:      {http.MethodGet: policy.Pull, http.MethodHead: policy.Pull, http.MethodDelete: policy.Delete},
	opUploads:   {http.MethodPost: policy.Push},
	// Whoever may begin an upload may end it, one way or the other.
	opUpload: {
		http.MethodGet: policy.Push, http.MethodHead: policy.Push,
		http.MethodPatch: policy.Push, http.MethodPut: policy.Push, http.MethodDelete: policy.Push,
	},
	opManifest: {
		http.MethodGet: policy.Pull, http.MethodHead: policy.Pull,
		http.MethodPut: policy.Push, http.MethodDelete: policy.Delete,
	},
}

// authorize finds out who asks and whether they may, before anything of the body is
// read. It returns the context for the handler. What fails with errUnauthenticated or
// errInsufficientScope has a challenge in the reply's header.
func (g *gateway) authorize(ctx context.Context, x *exchange) (context.Context, error) {
	switch {
	case isOperator(x.r):
		x.who = operator
		return ctx, nil
	case g.auth == nil:
		return ctx, nil
	case x.operation == opToken:
		return ctx, nil // It has rules of its own.
	case x.operation == opBlob && isReading(x.r.Method) && isSigned(x.query):
		return ctx, nil // The signature alone counts, see checkSignature.
	}
	ctx, err := g.permit(ctx, x)
	switch reason := challengeReason(err); {
	case reason == nil:
		return ctx, err
	default:
		return ctx, x.challenge(g.auth, reason, err)
	}
}

// permit is authorize without the challenge.
func (g *gateway) permit(ctx context.Context, x *exchange) (context.Context, error) {
	needed := neededRights[x.operation][x.r.Method]
	if len(x.r.Header["Authorization"]) == 0 && x.certified == "" && !g.mayBeAnonymous(x) {
		// Whoever is let in by a change of the policy this moment logs in then.
		return ctx, errUnauthenticated
	}
	ctx, err := g.catchUp(ctx, x)
	if err != nil {
		return ctx, err
	}
	if x.who, err = g.auth.authenticate(ctx, x); err != nil {
		return ctx, err
	}
	switch x.operation {
	case opBase:
		// The answer decides whether clients log in at all.
		if !x.who.presented {
			return ctx, errUnauthenticated
		}
		return ctx, nil
	case opCatalog:
		return ctx, x.who.checkCatalog()
	default:
		return ctx, g.auth.check(x.who, x.repository, needed)
	}
}

// mayBeAnonymous reports whether a request without credentials can be one that
// anybody may send. The catalog is not: a client that has credentials is to show them
// and get all that it may see.
func (g *gateway) mayBeAnonymous(x *exchange) bool {
	needed, about := neededRights[x.operation][x.r.Method]
	return about && g.auth.Accounts.LocalPolicy().Rights(policy.Subject{}, x.repository).Has(needed)
}

// catchUp makes what this node knows of accounts and the policy as new as the request,
// and the handler's reads with it: they need not ask the cluster again. Without a
// quorum, what reads go on with what the node knows, goes on with the rights that it
// knows; what writes never does.
//
// So do tokens: most clients want one for every pull. One that was given out on old
// knowledge gives nothing more for that: whatever it is used for looks up who has it,
// and what that one may do, as any other request does.
func (g *gateway) catchUp(ctx context.Context, x *exchange) (context.Context, error) {
	catchUp := g.auth.Accounts.CatchUp
	switch reading := isReading(x.r.Method); {
	case x.operation == opToken, x.operation == opBase,
		reading && (x.operation == opBlob || x.operation == opManifest && x.byDigest()):
		catchUp = g.auth.Accounts.CatchUpForContent
	case reading && (x.operation == opManifest || x.operation == opTags || x.operation == opReferrers || x.operation == opCatalog):
		catchUp = g.auth.Accounts.CatchUpForNames
	}
	if isReading(x.r.Method) {
		ctx = metadata.WithBarrier(ctx)
	}
	watched, stale := metadata.WatchStale(ctx)
	x.stale = stale
	if err := catchUp(watched); err != nil {
		return ctx, fmt.Errorf("look up who asks: %w", err)
	}
	return ctx, nil
}

func isReading(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// rights returns what somebody may do in a repository now: what the policy gives,
// as far as the token goes.
func (a *auth) rights(who identity, repository string) policy.Rights {
	rights := a.Accounts.LocalPolicy().Rights(who.subject, repository)
	if who.claims != nil {
		rights &= who.claims.rights(repository)
	}
	return rights
}

// check fails unless somebody has the rights that are needed: with
// errUnauthenticated or errInsufficientScope if to log in could help, or to ask for
// another token, and with errDenied if not. It does not know whether there is such a
// repository, so that no reply can tell.
func (a *auth) check(who identity, repository string, needed policy.Rights) error {
	granted := a.Accounts.LocalPolicy().Rights(who.subject, repository)
	switch {
	case needed == 0:
		return fmt.Errorf("%w: no right is enough for this", errDenied)
	case a.rights(who, repository).Has(needed):
		return nil
	case !who.presented:
		return errUnauthenticated
	case who.subject.Kind != policy.Anonymous && !granted.Has(needed):
		return refuse(errDenied, "you have no right to do this", map[string]string{"name": repository, "needed": needed.String()})
	case who.claims != nil:
		return errInsufficientScope
	}
	return errUnauthenticated
}

// checkCatalog fails unless the list of repositories may be shown. What is in it
// depends on who asks.
func (who identity) checkCatalog() error {
	switch {
	case !who.presented:
		return errUnauthenticated
	case who.claims != nil && !who.claims.catalog():
		return errInsufficientScope
	}
	return nil
}

// actionRights is what the actions of scopes stand for.
var actionRights = map[string]policy.Rights{
	actionPull: policy.Pull, actionPush: policy.Push, actionDelete: policy.Delete, actionAll: policy.All,
}

// rights returns what a token allows in a repository.
func (c *tokenClaims) rights(repository string) (rights policy.Rights) {
	for _, access := range c.Access {
		if access.Type == scopeRepository && access.Name == repository {
			for _, action := range access.Actions {
				rights |= actionRights[action]
			}
		}
	}
	return rights
}

// catalog reports whether a token allows to see the list of repositories.
func (c *tokenClaims) catalog() bool {
	return slices.ContainsFunc(c.Access, func(access tokenAccess) bool {
		return access.Type == scopeRegistry && access.Name == scopeCatalog && slices.Contains(access.Actions, actionAll)
	})
}

// mayPull reports whether the request's subject may read a repository that it
// names besides its own.
func (g *gateway) mayPull(x *exchange, repository string) bool {
	return g.auth == nil || x.who.method == loginOperator || g.auth.rights(x.who, repository).Has(policy.Pull)
}

// owner is whom the uploads belong to that a request begins; empty where nobody
// logs in.
func (g *gateway) owner(x *exchange) string {
	if g.auth == nil {
		return ""
	}
	return x.who.name()
}

// neededScope is the scope that a client has to ask for; empty if it does not matter.
func (x *exchange) neededScope() string {
	s := scope{kind: scopeRepository, name: x.repository}
	switch needed := neededRights[x.operation][x.r.Method]; {
	case x.operation == opCatalog:
		s = scope{kind: scopeRegistry, name: scopeCatalog, actions: []string{actionAll}}
	case needed == policy.Pull:
		s.actions = []string{actionPull}
	case needed == policy.Push:
		s.actions = []string{actionPull, actionPush}
	case needed == policy.Delete:
		s.actions = []string{actionPull, actionDelete}
	default:
		return ""
	}
	return s.String()
}

// quote writes a parameter of a challenge. Nothing that it is used for has quotes,
// backslashes or control characters.
func quote(name, value string) string { return name + `="` + strings.ReplaceAll(value, `"`, "") + `"` }
