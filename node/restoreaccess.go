package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// restoredAccess is a part of who may do what, on its way from a backup into a cluster
// by the operator's socket. Secret: it has hashes of passwords.
type restoredAccess struct {
	// Policy is an atoll.Policy, Accounts are atoll.Account, in their encoded form.
	Policy   []byte   `json:"policy,omitempty"`
	Accounts [][]byte `json:"accounts,omitempty"`
}

// accessRestored is what has become of it.
type accessRestored struct {
	// Policy is true if the policy is in force, false if the cluster had one already.
	Policy bool `json:"policy"`
	// Accounts are those that are new; others had their name already.
	Accounts uint64 `json:"accounts"`
}

// accountsSent is how many accounts are sent at once: with descriptions and groups as
// long as they may be, they stay below adminBodyBytes.
const accountsSent = 20

// access restores the policy and the accounts. The policy is first: accounts must not
// count for a moment under one that gives them more. What the cluster has already stays.
func (r *restore) access(ctx context.Context) error {
	current, err := r.archive.Policy(ctx)
	if err != nil {
		return fmt.Errorf("read the policy: %w", err)
	}
	if current.Revision > 0 {
		encoded, err := pb.Marshal(current)
		if err != nil {
			return fmt.Errorf("encode the policy: %w", err)
		}
		if err := r.sendAccess(ctx, restoredAccess{Policy: encoded}); err != nil {
			return fmt.Errorf("restore the policy: %w", err)
		}
	}
	after := ""
	for more := true; more; {
		var accounts []*atoll.Account
		if accounts, more, err = r.archive.Accounts(ctx, after, accountsSent); err != nil {
			return fmt.Errorf("read accounts: %w", err)
		}
		var part restoredAccess
		for _, account := range accounts {
			after = account.Name
			encoded, err := pb.Marshal(account)
			if err != nil {
				return fmt.Errorf("encode account %s: %w", account.Name, err)
			}
			part.Accounts = append(part.Accounts, encoded)
		}
		if len(part.Accounts) == 0 {
			break
		}
		if err := r.sendAccess(ctx, part); err != nil {
			return fmt.Errorf("restore accounts up to %s: %w", after, err)
		}
	}
	return nil
}

func (r *restore) sendAccess(ctx context.Context, part restoredAccess) error {
	var done accessRestored
	if err := sendAdmin(ctx, r.dataDir, http.MethodPost, "/access", part, &done); err != nil {
		return err
	}
	r.summary.Accounts += done.Accounts
	r.summary.Policy = r.summary.Policy || done.Policy
	return nil
}

func (a *admin) serveRestoreAccess(w http.ResponseWriter, r *http.Request) {
	var part restoredAccess
	if !a.checkAudit(w) || !readAdmin(w, r, &part) {
		return
	}
	done, err := a.restoreAccess(r.Context(), part)
	a.auditAdmin(r, "restore", "accounts and policy", fmt.Sprintf("policy %v, %d accounts", done.Policy, done.Accounts), err)
	answerAdmin(w, done, err)
}

// restoreAccess puts in what the cluster has not. Repeated, it changes nothing.
func (a *admin) restoreAccess(ctx context.Context, part restoredAccess) (done accessRestored, err error) {
	if len(part.Policy) > 0 {
		restored := &atoll.Policy{}
		if err := pb.Unmarshal(part.Policy, restored); err != nil {
			return done, refusal("the policy can't be read: " + err.Error())
		}
		switch err := a.store.PutPolicy(ctx, 0, restored); {
		case err == nil:
			done.Policy = true
		case !errors.Is(err, metadata.ErrChanged):
			return done, explainAccess(err)
		}
	}
	for _, encoded := range part.Accounts {
		account := &atoll.Account{}
		if err := pb.Unmarshal(encoded, account); err != nil {
			return done, refusal("an account can't be read: " + err.Error())
		}
		switch err := a.store.PutAccount(ctx, account, nil); {
		case err == nil:
			done.Accounts++
		case !errors.Is(err, metadata.ErrChanged):
			return done, explainAccess(err)
		}
	}
	return done, nil
}
