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
	client, now := x.origin.client, a.now()
	id, ok := metadata.CheckLogin(account, password, now)
	if !ok {
		if err := a.throttle.check(client, name, now); err != nil {
			return identity{}, err
		}
		return identity{}, a.failed(client, name)
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
	if exists && a.hasher.known(hash, password) {
		return who, nil
	}
	if err := a.throttle.check(client, name, a.now()); err != nil {
		return identity{}, err
	}
	right, err := a.hasher.fits(ctx, hash, password)
	if err != nil {
		return identity{}, fmt.Errorf("log in: %w", err)
	}
	if !right || !exists {
		return identity{}, a.failed(client, name)
	}
	x.fresh = true
	a.throttle.succeeded(client, name)
	return who, nil
}

// failed counts a login that failed, and is its error.
func (a *auth) failed(client netip.Addr, name string) error {
	a.throttle.failed(client, name, a.now())
	return fmt.Errorf("%w: wrong name or password", errUnauthenticated)
}
