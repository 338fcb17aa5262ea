package gateway

import (
	"errors"
	"strings"
)

// tokenPath is where tokens are had.
const tokenPath = "/token"

// challengeReason returns the sentinel of an error that logging in can cure.
func challengeReason(err error) error {
	for _, reason := range []error{errUnauthenticated, errInsufficientScope} {
		if errors.Is(err, reason) {
			return reason
		}
	}
	return nil
}

// challenge puts into the reply how to log in, as one Bearer challenge: several
// clients read the first only. It has an error only if there was a token, since
// containerd gives up at the second one. It returns the error for the reply.
func (x *exchange) challenge(a *auth, reason, err error) error {
	realm, realmErr := x.realm(a)
	if realmErr != nil {
		return realmErr
	}
	parameters := []string{quote("realm", realm), quote("service", a.Service)}
	if needed := x.neededScope(); needed != "" {
		parameters = append(parameters, quote("scope", needed))
	}
	switch {
	case errors.Is(reason, errInsufficientScope):
		parameters = append(parameters, quote("error", "insufficient_scope"))
	case x.tokenSent:
		parameters = append(parameters, quote("error", "invalid_token"))
	}
	x.w.Header().Set("WWW-Authenticate", "Bearer "+strings.Join(parameters, ","))
	return err
}

// realm is the URL of the token service: the operator's, or on the host that the
// client asked, since some clients send their password to no other one.
func (x *exchange) realm(a *auth) (string, error) {
	if a.Realm != "" {
		return a.Realm, nil
	}
	if !validHost(x.origin.host) {
		return "", refuse(errHostInvalid, "the request names no host that a token could be had from", nil)
	}
	return x.origin.scheme + "://" + x.origin.host + tokenPath, nil
}
