package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// logIn checks a name and a password. It fails with errUnauthenticated, which
// does not tell which of both is wrong, and with errLoginThrottled or errLoginsBusy
// before the password was looked at. No name and no password is nobody: some
// clients send that when they have none.
func (a *auth) logIn(ctx context.Context, x *exchange, name, password string) (identity, error) {
	if name == "" && password == "" {
		return identity{method: loginNone}, nil
	}
	x.login = name
	if name == IssuerUser {
		known := a.issuerOf(password)
		if known == nil {
			return identity{}, fmt.Errorf("%w: the password of %s is not the token of a known issuer", errUnauthenticated, IssuerUser)
		}
		return a.external(ctx, known, password)
	}
	account, err := a.Accounts.LocalAccount(name)
	if err != nil && !errors.Is(err, metadata.ErrAccountUnknown) {
		return identity{}, fmt.Errorf("look up account: %w", err)
	}
	if metadata.IsRobotSecret(password) {
		return a.logInRobot(x, account, name, password)
	}
	return a.logInUser(ctx, x, account, name, password)
}

// logInRobot looks a secret up. It costs next to nothing, and the same whether or not
// there is such an account.
func (a *auth) logInRobot(x *exchange, account *proto.Account, name, password string) (identity, error) {
	id, ok := metadata.CheckLogin(account, password, a.now())
	if !ok {
		leave, err := a.throttle.enter(x.origin.client, name, a.now)
		if err != nil {
			return identity{}, err
		}
		leave(true)
		return identity{}, errWrongLogin()
	}
	return identity{
		subject: metadata.SubjectOf(account), method: loginRobot, generation: account.GetGeneration(), secret: id, presented: true,
	}, nil
}

// logInUser checks a password. What was found right before is let through at once;
// all else takes the same time, also for users who do not exist.
func (a *auth) logInUser(ctx context.Context, x *exchange, account *proto.Account, name, password string) (identity, error) {
	who := identity{subject: metadata.SubjectOf(account), method: loginPassword, generation: account.GetGeneration(), presented: true}
	hash := account.GetPasswordHash()
	if account == nil {
		if hash = a.Htpasswd.hash(name); hash != nil {
			who.subject.Name, who.method, who.generation = name, loginHtpasswd, generationOf(hash)
		}
	}
	exists := len(hash) > 0 && !account.GetDisabled()
	client := x.origin.client
	if exists && a.hasher.known(name, hash, password) {
		return who, nil
	}
	if err := a.tryPassword(ctx, guess{client, name, hash, password, exists}); err != nil {
		return identity{}, err
	}
	x.fresh = true
	return who, nil
}

// guess is a password to be looked at. The hash is nil if nobody has the name, and
// exists false if nobody can log in under it.
type guess struct {
	client   netip.Addr
	name     string
	hash     []byte
	password string
	exists   bool
}

// tryPassword fails unless the password is right. Once it is looked at, it counts, also
// if the client does not wait for the answer: what is found right is remembered, and
// would tell it later. A client that tries the same several times at once tries once.
func (a *auth) tryPassword(ctx context.Context, g guess) error {
	key := a.hasher.key(g.name, g.hash, g.password)
	answer := a.tries.DoChan(clientPrefix(g.client).String()+string(key[:]), func() (any, error) {
		leave, err := a.throttle.enter(g.client, g.name, a.now)
		if err != nil {
			return false, err
		}
		right, err := a.hasher.fits(context.Background(), g.name, g.hash, g.password)
		right = right && g.exists
		leave(err == nil && !right)
		if right {
			a.throttle.succeeded(g.client, g.name)
		}
		return right, err
	})
	select {
	case <-ctx.Done():
		return fmt.Errorf("log in: %w", ctx.Err())
	case result := <-answer:
		if result.Err != nil {
			return fmt.Errorf("log in: %w", result.Err)
		}
		if right, _ := result.Val.(bool); !right {
			return errWrongLogin()
		}
		return nil
	}
}

// errWrongLogin is the error of every login that fails.
func errWrongLogin() error { return fmt.Errorf("%w: wrong name or password", errUnauthenticated) }
