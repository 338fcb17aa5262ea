package metadata

import (
	"context"
	"errors"
	"regexp"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

// Bounds of an account.
const (
	// MaxSecrets is how many secrets of a robot count at a time.
	MaxSecrets = 5
	// MaxGroups is how many groups an account is a member of.
	MaxGroups = 100
	// MaxDescriptionBytes bounds what people write about an account.
	MaxDescriptionBytes = 1024
	// maxPasswordHashBytes bounds a password's hash: one of bcrypt has 60.
	maxPasswordHashBytes = 128
	// secretHashBytes is the length of a SHA-256.
	secretHashBytes = 32
)

// accountName is the grammar of accounts' names, and of groups: those that every client
// takes as a user's name, and that are safe in a shell, a URL and a policy. Upper case
// is left out, so that no two names look alike.
var accountName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// IsAccountName reports whether a user, a robot or a group may be called so.
func IsAccountName(name string) bool { return accountName.MatchString(name) }

// putAccount makes or changes an account, unless somebody else has meanwhile.
func (c *change) putAccount(command *proto.PutAccount) error {
	if err := checkAccount(command.GetAccount()); err != nil {
		return err
	}
	key := keyOf(command.GetAccount().GetName())
	var current *proto.Account
	stored := &proto.Account{}
	found, err := c.record(bucketAccounts, key, stored)
	if err != nil {
		return err
	}
	if found {
		current = stored
	}
	if !pb.Equal(current, command.GetPrevious()) { // a nil message equals nil only
		return refuse(proto.Refusal_REFUSAL_CHANGED, "account %q has changed, or is there already", command.GetAccount().GetName())
	}
	next := pb.Clone(command.GetAccount()).(*proto.Account)
	next.UpdatedUnixMs = c.now
	switch {
	case !found:
		next.Generation, next.CreatedUnixMs = c.at.logIndex, c.now
	case next.GetKind() != current.GetKind():
		return invalid("account %q: users stay users and robots stay robots, make another one", next.GetName())
	default:
		next.Generation, next.CreatedUnixMs = current.GetGeneration(), current.GetCreatedUnixMs()
		if endsLogins(current, next, c.now) {
			// The log index never comes again: not for an account of the same name either,
			// that follows after this one was deleted.
			next.Generation = max(current.GetGeneration()+1, c.at.logIndex)
		}
	}
	return c.put(bucketAccounts, key, next)
}

// endsLogins reports whether a change takes away what somebody may have logged in with:
// what was made of it must end, too. Groups are looked up at each request, so that a
// change of theirs counts at once without that. A secret that counts until later does
// not end now.
func endsLogins(current, next *proto.Account, now int64) bool {
	if !current.GetDisabled() && next.GetDisabled() {
		return true
	}
	if string(current.GetPasswordHash()) != string(next.GetPasswordHash()) {
		return true
	}
	counts := map[string]bool{}
	for _, secret := range next.GetSecrets() {
		if secretCounts(secret, now) {
			counts[string(secret.GetSha256())] = true
		}
	}
	for _, secret := range current.GetSecrets() {
		if secretCounts(secret, now) && !counts[string(secret.GetSha256())] {
			return true
		}
	}
	return false
}

// secretCounts reports whether a secret is good at a time, in Unix milliseconds.
func secretCounts(secret *proto.AccountSecret, now int64) bool {
	return secret.GetExpiresUnixMs() == 0 || now < secret.GetExpiresUnixMs()
}

// checkAccount refuses what no node may send.
func checkAccount(account *proto.Account) error {
	switch {
	case !IsAccountName(account.GetName()):
		return invalid("account's name %q: it has 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit", account.GetName())
	case account.GetKind() != proto.AccountKind_ACCOUNT_KIND_USER && account.GetKind() != proto.AccountKind_ACCOUNT_KIND_ROBOT:
		return invalid("account %q is of the kind %v", account.GetName(), account.GetKind())
	case account.GetKind() == proto.AccountKind_ACCOUNT_KIND_USER && len(account.GetSecrets()) > 0:
		return invalid("account %q is a user's and has secrets", account.GetName())
	case account.GetKind() == proto.AccountKind_ACCOUNT_KIND_ROBOT && len(account.GetPasswordHash()) > 0:
		return invalid("account %q is a robot's and has a password", account.GetName())
	case len(account.GetPasswordHash()) > maxPasswordHashBytes:
		return invalid("account %q has a password hash of %d bytes", account.GetName(), len(account.GetPasswordHash()))
	case len(account.GetDescription()) > MaxDescriptionBytes:
		return invalid("account %q has a description of %d bytes, more than %d", account.GetName(), len(account.GetDescription()), MaxDescriptionBytes)
	case len(account.GetGroups()) > MaxGroups:
		return invalid("account %q is in %d groups, more than %d", account.GetName(), len(account.GetGroups()), MaxGroups)
	case len(account.GetSecrets()) > MaxSecrets:
		return invalid("account %q has %d secrets, more than %d", account.GetName(), len(account.GetSecrets()), MaxSecrets)
	}
	groups := map[string]bool{}
	for _, group := range account.GetGroups() {
		if !IsAccountName(group) || groups[group] {
			return invalid("account %q is in the group %q, which is no name or is there twice", account.GetName(), group)
		}
		groups[group] = true
	}
	return checkSecrets(account)
}

func checkSecrets(account *proto.Account) error {
	ids := map[string]bool{}
	for _, secret := range account.GetSecrets() {
		if !IsAccountName(secret.GetId()) || ids[secret.GetId()] || len(secret.GetSha256()) != secretHashBytes {
			return invalid("account %q has a secret %q that is malformed or there twice", account.GetName(), secret.GetId())
		}
		ids[secret.GetId()] = true
	}
	return nil
}

func (c *change) deleteAccount(command *proto.DeleteAccount) error {
	key := keyOf(command.GetName())
	found, err := c.has(bucketAccounts, key)
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_ACCOUNT_UNKNOWN, "%q", command.GetName())
	}
	return c.remove(bucketAccounts, key)
}

// account returns an account, or ErrAccountUnknown.
func (v view) account(name string) (*proto.Account, error) {
	account := &proto.Account{}
	found, err := v.record(bucketAccounts, keyOf(name), account)
	if err == nil && !found {
		err = ErrAccountUnknown
	}
	if err != nil {
		return nil, err
	}
	return account, nil
}

// SubjectOf is who an account is to the policy.
func SubjectOf(account *proto.Account) policy.Subject {
	kind := policy.User
	if account.GetKind() == proto.AccountKind_ACCOUNT_KIND_ROBOT {
		kind = policy.Robot
	}
	return policy.Subject{Kind: kind, Name: account.GetName(), Groups: account.GetGroups()}
}

// Account returns an account by its name. It has hashes of secrets, which must not be
// shown. Errors: ErrAccountUnknown, ErrUnavailable.
func (s *Store) Account(ctx context.Context, name string) (account *proto.Account, err error) {
	err = s.read(ctx, func(v view) error {
		account, err = v.account(name)
		return err
	})
	return account, err
}

// LocalAccount is Account as this node knows it, without waiting for anybody. Errors:
// ErrAccountUnknown, ErrCorrupt, ErrClosed.
func (s *Store) LocalAccount(name string) (account *proto.Account, err error) {
	err = s.machine.view(func(v view) error {
		account, err = v.account(name)
		return err
	})
	return account, err
}

// Accounts returns at most limit accounts whose names come after the given one, in the
// order of their names, and whether there are more. Error: ErrUnavailable.
func (s *Store) Accounts(ctx context.Context, after string, limit int) (accounts []*proto.Account, more bool, err error) {
	limit = pageLimit(limit)
	err = s.read(ctx, func(v view) error {
		return v.scan(bucketAccounts, span{after: []byte(after)}, func(name, value []byte) error {
			if len(accounts) == limit {
				more = true
				return errStop
			}
			account := &proto.Account{}
			accounts = append(accounts, account)
			return decode(bucketAccounts, name, value, account)
		})
	})
	return accounts, more, err
}

// PutAccount makes an account, or changes one that is still what the caller has seen:
// previous, nil for a new one. Generation and times are the state machine's to say.
// Errors: ErrChanged, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) PutAccount(ctx context.Context, account, previous *proto.Account) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutAccount{PutAccount: &proto.PutAccount{
		Account: account, Previous: previous,
	}}})
	return err
}

// changeRounds bounds how often a change of an account is tried that others change, too.
const changeRounds = 5

// ChangeAccount has edit change an account, again if somebody else changes it at the
// same time, and returns what edit has made of it. Errors: that of edit,
// ErrAccountUnknown, ErrChanged, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) ChangeAccount(ctx context.Context, name string, edit func(*proto.Account) error) (*proto.Account, error) {
	for round := 1; ; round++ {
		previous, err := s.Account(ctx, name)
		if err != nil {
			return nil, err
		}
		next := pb.Clone(previous).(*proto.Account)
		if err := edit(next); err != nil {
			return nil, err
		}
		if err := s.PutAccount(ctx, next, previous); !errors.Is(err, ErrChanged) || round == changeRounds {
			return next, err
		}
	}
}

// DeleteAccount deletes an account. What it was logged in with ends. Errors:
// ErrAccountUnknown, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) DeleteAccount(ctx context.Context, name string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_DeleteAccount{DeleteAccount: &proto.DeleteAccount{Name: name}}})
	return err
}
