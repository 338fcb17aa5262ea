package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

func (a *admin) serveAccount(w http.ResponseWriter, r *http.Request) {
	name, kind := r.PathValue("name"), r.URL.Query().Get("kind")
	record, err := a.store.Account(r.Context(), name)
	if err == nil {
		err = checkKind(record, kind)
	}
	if errors.Is(err, metadata.ErrAccountUnknown) {
		err = noAccount(kind, name)
	}
	answerAdmin(w, accountOf(record, time.Now()), err)
}

func (a *admin) serveAccounts(w http.ResponseWriter, r *http.Request) {
	accounts := []Account{}
	err := a.everyAccount(r.Context(), func(record *atoll.Account) bool {
		if account := accountOf(record, time.Now()); account.Kind == r.URL.Query().Get("kind") {
			accounts = append(accounts, account)
		}
		return true
	})
	answerAdmin(w, accounts, err)
}

// accountsAtOnce is how many accounts are read in one transaction.
const accountsAtOnce = 100

// everyAccount calls visit for each account, by name, until it wants no more.
func (a *admin) everyAccount(ctx context.Context, visit func(*atoll.Account) bool) error {
	after := ""
	for more := true; more; {
		var records []*atoll.Account
		var err error
		if records, more, err = a.store.Accounts(ctx, after, accountsAtOnce); err != nil {
			return fmt.Errorf("list accounts: %w", err)
		}
		for _, record := range records {
			after = record.Name
			if !visit(record) {
				return nil
			}
		}
	}
	return nil
}

func (a *admin) serveNewAccount(w http.ResponseWriter, r *http.Request) {
	var made NewAccount
	if !a.checkAudit(w) || !readAdmin(w, r, &made) {
		return
	}
	answer, err := a.createAccount(r.Context(), made)
	a.auditAdmin(r, made.Kind+" add", made.Name, fmt.Sprintf("groups %q", made.Groups), err)
	answerAdmin(w, answer, err)
}

func (a *admin) createAccount(ctx context.Context, made NewAccount) (*AccountAnswer, error) {
	record := &atoll.Account{Name: made.Name, Description: made.Description, Groups: withGroups(nil, made.Groups, nil)}
	answer := &AccountAnswer{}
	var err error
	switch made.Kind {
	case KindUser:
		record.Kind = atoll.AccountKind_ACCOUNT_KIND_USER
		answer.Secret, err = setPassword(record, made.Password)
	case KindRobot:
		record.Kind = atoll.AccountKind_ACCOUNT_KIND_ROBOT
		answer.Secret, err = addSecret(record, time.Now(), made.TTL)
	default:
		err = refusal(fmt.Sprintf("an account is a %s or a %s, not %q", KindUser, KindRobot, made.Kind))
	}
	if err != nil {
		return nil, err
	}
	err = a.store.PutAccount(ctx, record, nil)
	if errors.Is(err, metadata.ErrChanged) {
		return nil, refusal(fmt.Sprintf("there is an account %q already, a user's or a robot's: choose another name", made.Name))
	}
	if err != nil {
		return nil, explainAccess(err)
	}
	return a.answerAccount(ctx, answer, record, false)
}

func (a *admin) serveAccountChange(w http.ResponseWriter, r *http.Request) {
	var change AccountChange
	if !a.checkAudit(w) || !readAdmin(w, r, &change) {
		return
	}
	name := r.PathValue("name")
	answer, err := a.changeAccount(r.Context(), name, change)
	a.auditAdmin(r, change.Kind+" change", name, change.String(), err)
	answerAdmin(w, answer, err)
}

// String says what changes, without any secret.
func (c AccountChange) String() string {
	text := ""
	add := func(format string, args ...any) { text += fmt.Sprintf(format, args...) + "; " }
	if c.Disabled != nil {
		add("disabled %v", *c.Disabled)
	}
	if len(c.AddGroups)+len(c.RemoveGroups) > 0 {
		add("groups +%q -%q", c.AddGroups, c.RemoveGroups)
	}
	if c.Password != nil {
		add("another password")
	}
	if c.Rotate != nil {
		add("another secret, others for %v", c.Rotate.Keep)
	}
	if c.Revoke != "" {
		add("without the secret %s", c.Revoke)
	}
	if text == "" {
		return "nothing"
	}
	return text[:len(text)-len("; ")]
}

func (a *admin) changeAccount(ctx context.Context, name string, change AccountChange) (*AccountAnswer, error) {
	answer, administered := &AccountAnswer{}, false
	sent, err := a.store.ChangeAccount(ctx, name, func(record *atoll.Account) (err error) {
		if err := checkKind(record, change.Kind); err != nil {
			return err
		}
		administered = a.administers(record)
		answer.Secret, err = change.apply(record, time.Now())
		return err
	})
	if errors.Is(err, metadata.ErrAccountUnknown) {
		return nil, noAccount(change.Kind, name)
	}
	if err != nil {
		return nil, explainAccess(err)
	}
	return a.answerAccount(ctx, answer, sent, administered)
}

// apply changes the record, and returns what was made for somebody to log in with.
func (c AccountChange) apply(record *atoll.Account, now time.Time) (made Secret, err error) {
	if c.Disabled != nil {
		record.Disabled = *c.Disabled
	}
	for _, group := range c.RemoveGroups {
		if !slices.Contains(record.Groups, group) {
			return "", refusal(fmt.Sprintf("%s is not in the group %q: its groups are %q", record.Name, group, record.Groups))
		}
	}
	record.Groups = withGroups(record.Groups, c.AddGroups, c.RemoveGroups)
	if c.Revoke != "" {
		if err := revokeSecret(record, c.Revoke); err != nil {
			return "", err
		}
	}
	switch {
	case c.Password != nil:
		return setPassword(record, *c.Password)
	case c.Rotate != nil:
		return rotateSecrets(record, now, *c.Rotate)
	}
	return "", nil
}

func (a *admin) serveAccountRemoval(w http.ResponseWriter, r *http.Request) {
	if !a.checkAudit(w) {
		return
	}
	name, kind := r.PathValue("name"), r.URL.Query().Get("kind")
	answer, err := a.removeAccount(r.Context(), name, kind)
	a.auditAdmin(r, kind+" remove", name, "", err)
	answerAdmin(w, answer, err)
}

func (a *admin) removeAccount(ctx context.Context, name, kind string) (*AccountAnswer, error) {
	record, err := a.store.Account(ctx, name)
	if err == nil {
		if err = checkKind(record, kind); err == nil {
			err = a.store.DeleteAccount(ctx, name)
		}
	}
	if errors.Is(err, metadata.ErrAccountUnknown) {
		return nil, noAccount(kind, name)
	}
	if err != nil {
		return nil, explainAccess(err)
	}
	answer := &AccountAnswer{Account: accountOf(record, time.Now())}
	return answer, a.warn(ctx, answer, a.administers(record))
}

// answerAccount completes the answer to a change that was made of the record that was
// sent. administered says that the account had the right admin before.
func (a *admin) answerAccount(ctx context.Context, answer *AccountAnswer, sent *atoll.Account, administered bool) (*AccountAnswer, error) {
	record, err := a.store.Account(ctx, sent.Name)
	if err != nil {
		if answer.Secret == "" {
			return nil, fmt.Errorf("%s was changed, and can't be looked at now: %w", sent.Name, err)
		}
		record = sent // without the times; what was made is told in any case, since nobody else has it
	}
	answer.Account = accountOf(record, time.Now())
	if !record.Disabled && !a.store.LocalPolicy().AnyRight(metadata.SubjectOf(record)) {
		answer.Warnings = append(answer.Warnings, fmt.Sprintf(
			"%s may do nothing yet: no rule of the policy names it or one of its groups ('atoll policy show', 'atoll policy set')", metadata.SubjectOf(record)))
	}
	if err := a.warn(ctx, answer, administered && !a.administers(record)); err != nil && answer.Secret == "" {
		return nil, err
	}
	return answer, nil
}

// warn adds what to know after an account has lost the right admin, if it has.
func (a *admin) warn(ctx context.Context, answer *AccountAnswer, lost bool) error {
	if !lost {
		return nil
	}
	warning, err := a.adminlessWarning(ctx)
	if warning != "" {
		answer.Warnings = append(answer.Warnings, warning)
	}
	return err
}

// adminlessWarning is what an operator should know if nobody can log in who has the
// right admin; empty if somebody can.
func (a *admin) adminlessWarning(ctx context.Context) (string, error) {
	found := false
	err := a.everyAccount(ctx, func(record *atoll.Account) bool {
		found = a.administers(record)
		return !found
	})
	if found || err != nil {
		return "", err
	}
	return "no account has the right admin any more: only who may use this socket can give it back", nil
}

// administers reports whether somebody can log in with the account and has the right
// admin anywhere.
func (a *admin) administers(record *atoll.Account) bool {
	return !record.Disabled && a.store.LocalPolicy().Administers(metadata.SubjectOf(record))
}

// kindWord is the operator's word for an account's kind.
func kindWord(kind atoll.AccountKind) string {
	if kind == atoll.AccountKind_ACCOUNT_KIND_ROBOT {
		return KindRobot
	}
	return KindUser
}

func checkKind(record *atoll.Account, kind string) error {
	if actual := kindWord(record.Kind); actual != kind {
		return refusal(fmt.Sprintf("%s is a %s and no %s: use 'atoll %s'", record.Name, actual, kind, actual))
	}
	return nil
}

func noAccount(kind, name string) error {
	return refusal(fmt.Sprintf("there is no %s %q: 'atoll %s list' shows them all", kind, name, kind))
}

// explainAccess turns what the cluster refuses into words for the operator.
func explainAccess(err error) error {
	switch {
	case errors.Is(err, metadata.ErrInvalid):
		return refusal(err.Error())
	case errors.Is(err, metadata.ErrChanged):
		return refusal("somebody else has changed it at the same time: look at it again, and try again")
	case errors.Is(err, metadata.ErrOutcomeUnknown):
		return fmt.Errorf("the change may have been made: look before you try again: %w", err)
	}
	return err
}

func accountOf(record *atoll.Account, now time.Time) Account {
	account := Account{
		Name: record.GetName(), Kind: kindWord(record.GetKind()), Groups: slices.Clone(record.GetGroups()), Disabled: record.GetDisabled(),
		Description: record.GetDescription(), Created: time.UnixMilli(record.GetCreatedUnixMs()), Updated: time.UnixMilli(record.GetUpdatedUnixMs()),
	}
	if account.Groups == nil {
		account.Groups = []string{}
	}
	for _, secret := range record.GetSecrets() {
		s := AccountSecret{ID: secret.Id, Created: time.UnixMilli(secret.CreatedUnixMs)}
		if secret.ExpiresUnixMs != 0 {
			expires := time.UnixMilli(secret.ExpiresUnixMs)
			s.Expires, s.Expired = &expires, !now.Before(expires)
		}
		account.Secrets = append(account.Secrets, s)
	}
	return account
}

// withGroups adds groups and takes some away, each once and in order.
func withGroups(groups, added, removed []string) []string {
	next := slices.Concat(groups, added)
	slices.Sort(next)
	next = slices.Compact(next)
	return slices.DeleteFunc(next, func(group string) bool { return slices.Contains(removed, group) })
}
