package node

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/atollregistry/atoll/metadata"
)

// Kinds of accounts, as operators name them.
const (
	// KindUser is a person's account, with a password.
	KindUser = "user"
	// KindRobot is a program's account, with secrets that atoll has made.
	KindRobot = "robot"
)

// Secret is a password, or a robot's secret. It does not print itself.
type Secret string

// String hides the secret.
func (Secret) String() string { return "(secret)" }

// GoString hides the secret.
func (Secret) GoString() string { return "(secret)" }

// Account is an account as operators see it: without anything that lets somebody in.
type Account struct {
	Name        string   `json:"name"`
	Kind        string   `json:"kind"`
	Groups      []string `json:"groups"`
	Disabled    bool     `json:"disabled"`
	Description string   `json:"description,omitempty"`
	// Secrets are those of a robot, in the order in which they were made.
	Secrets []AccountSecret `json:"secrets,omitempty"`
	Created time.Time       `json:"created"`
	Updated time.Time       `json:"updated"`
}

// AccountSecret is a robot's secret without the secret.
type AccountSecret struct {
	// ID is the beginning of the SHA-256 of the secret, in hexadecimal.
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	// Expires is nil for never.
	Expires *time.Time `json:"expires,omitempty"`
	Expired bool       `json:"expired"`
}

// NewAccount is what an account is made from.
type NewAccount struct {
	Name        string   `json:"name"`
	Kind        string   `json:"kind"`
	Groups      []string `json:"groups,omitempty"`
	Description string   `json:"description,omitempty"`
	// Password is a user's; empty for one that is made.
	Password Secret `json:"password,omitempty"`
	// TTL is how long a robot's secret counts; 0 for ever.
	TTL time.Duration `json:"ttl,omitempty"`
}

// AccountChange is a change of an account. Zero fields change nothing.
type AccountChange struct {
	// Kind is what the account must be.
	Kind         string   `json:"kind"`
	Disabled     *bool    `json:"disabled,omitempty"`
	AddGroups    []string `json:"add_groups,omitempty"`
	RemoveGroups []string `json:"remove_groups,omitempty"`
	// Password is a user's new one; empty, but not nil, for one that is made.
	Password *Secret `json:"password,omitempty"`
	// Rotate gives a robot another secret.
	Rotate *Rotation `json:"rotate,omitempty"`
	// Revoke is the id of a robot's secret that counts no more.
	Revoke string `json:"revoke,omitempty"`
}

// Rotation is how one secret follows another.
type Rotation struct {
	// TTL is how long the new secret counts, 0 for ever, and nil for as long as the
	// newest one was to count.
	TTL *time.Duration `json:"ttl,omitempty"`
	// Keep is how much longer those before it count at most; 0 for no more.
	Keep time.Duration `json:"keep"`
}

// AccountAnswer is an account after a change.
type AccountAnswer struct {
	Account Account `json:"account"`
	// Secret is the password, or the robot's secret, that was made. It is kept nowhere
	// else.
	Secret Secret `json:"secret,omitempty"`
	// Warnings are what the operator may not have thought of.
	Warnings []string `json:"warnings,omitempty"`
}

// CreateAccount makes an account, through the node whose data folder is given.
func CreateAccount(ctx context.Context, dataDir string, made NewAccount) (*AccountAnswer, error) {
	answer := &AccountAnswer{}
	return answer, sendAdmin(ctx, dataDir, http.MethodPost, "/accounts", made, answer)
}

// ChangeAccount changes an account, through the node whose data folder is given.
func ChangeAccount(ctx context.Context, dataDir, name string, change AccountChange) (*AccountAnswer, error) {
	answer := &AccountAnswer{}
	if !metadata.IsAccountName(name) {
		return nil, noAccount(change.Kind, name)
	}
	return answer, sendAdmin(ctx, dataDir, http.MethodPatch, "/accounts/"+url.PathEscape(name), change, answer)
}

// RemoveAccount removes an account of a kind, through the node whose data folder is
// given. What was logged in with it ends at once.
func RemoveAccount(ctx context.Context, dataDir, kind, name string) (*AccountAnswer, error) {
	answer := &AccountAnswer{}
	if !metadata.IsAccountName(name) {
		return nil, noAccount(kind, name)
	}
	path := "/accounts/" + url.PathEscape(name) + "?" + url.Values{"kind": {kind}}.Encode()
	return answer, sendAdmin(ctx, dataDir, http.MethodDelete, path, nil, answer)
}

// FetchAccounts returns all accounts of a kind by their names, through the node whose
// data folder is given.
func FetchAccounts(ctx context.Context, dataDir, kind string) (accounts []Account, err error) {
	path := "/accounts?" + url.Values{"kind": {kind}}.Encode()
	return accounts, sendAdmin(ctx, dataDir, http.MethodGet, path, nil, &accounts)
}

// FetchAccount returns one account, through the node whose data folder is given.
func FetchAccount(ctx context.Context, dataDir, kind, name string) (account Account, err error) {
	if !metadata.IsAccountName(name) {
		return account, noAccount(kind, name)
	}
	path := "/accounts/" + url.PathEscape(name) + "?" + url.Values{"kind": {kind}}.Encode()
	return account, sendAdmin(ctx, dataDir, http.MethodGet, path, nil, &account)
}
