package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/metadata/policy"
	atoll "github.com/atollregistry/atoll/proto"
)

// Policy is who may do what, as an operator has written it.
type Policy struct {
	// Revision is 0 for the default policy, one more with every change.
	Revision uint64 `json:"revision"`
	// Text is YAML, with comments.
	Text string `json:"text"`
	// Updated is nil for the default policy.
	Updated *time.Time `json:"updated,omitempty"`
}

// NewPolicy is a policy to take the place of the present one.
type NewPolicy struct {
	// Text is YAML.
	Text string `json:"text"`
	// Revision, if not nil, is the one that it may take the place of.
	Revision *uint64 `json:"revision,omitempty"`
	// DryRun changes nothing.
	DryRun bool `json:"dry_run,omitempty"`
}

// PolicyChange is what another policy changes.
type PolicyChange struct {
	// Revision is that of the policy in force now.
	Revision uint64 `json:"revision"`
	// Changed says that the new policy is in force; false if it is the same as before,
	// and for a dry run.
	Changed bool `json:"changed"`
	// Diff has a line for each rule that goes, which begins with a minus, and for each
	// that comes, with a plus; none if only comments or the order change.
	Diff string `json:"diff"`
	// Warnings are what the operator may not have thought of.
	Warnings []string `json:"warnings,omitempty"`
}

// PolicyCheck is what somebody may do, and why.
type PolicyCheck struct {
	Subject    string `json:"subject"`
	Repository string `json:"repository"`
	// Groups that the answer is for: those of the account and those that were asked
	// about.
	Groups []string `json:"groups"`
	// Account is "" if there is no account of this name: then it is somebody who logs in
	// by other means. Else it is "enabled" or "disabled".
	Account string `json:"account,omitempty"`
	// Rights are in words, such as "pull, push".
	Rights string        `json:"rights"`
	Grants []PolicyGrant `json:"grants"`
}

// PolicyGrant is a rule that gives rights.
type PolicyGrant struct {
	// Rule is its number in the policy, from 1.
	Rule         int    `json:"rule"`
	Subject      string `json:"subject"`
	Repositories string `json:"repositories"`
	Rights       string `json:"rights"`
}

// FetchPolicy returns the policy, through the node whose data folder is given.
func FetchPolicy(ctx context.Context, dataDir string) (*Policy, error) {
	current := &Policy{}
	return current, sendAdmin(ctx, dataDir, http.MethodGet, "/policy", nil, current)
}

// SetPolicy changes the policy, through the node whose data folder is given. From the
// answer on it counts on every node.
func SetPolicy(ctx context.Context, dataDir string, next NewPolicy) (*PolicyChange, error) {
	if len(next.Text) > policy.MaxTextBytes {
		return nil, refusal(fmt.Sprintf("the policy has %d bytes, and at most %d fit: give rights to groups, and name repositories by patterns", len(next.Text), policy.MaxTextBytes))
	}
	change := &PolicyChange{}
	return change, sendAdmin(ctx, dataDir, http.MethodPut, "/policy", next, change)
}

// CheckPolicy tells what a subject may do in a repository, as a member of more groups
// besides those of its account, through the node whose data folder is given.
func CheckPolicy(ctx context.Context, dataDir, subject, repository string, groups []string) (*PolicyCheck, error) {
	check := &PolicyCheck{}
	query := url.Values{"subject": {subject}, "repository": {repository}, "group": groups}
	return check, sendAdmin(ctx, dataDir, http.MethodGet, "/policy/check?"+query.Encode(), nil, check)
}

func (a *admin) servePolicy(w http.ResponseWriter, r *http.Request) {
	current, err := a.store.Policy(r.Context())
	if err != nil {
		answerAdmin(w, nil, err)
		return
	}
	answer := &Policy{Revision: current.Revision, Text: string(textOf(current))}
	if current.UpdatedUnixMs != 0 {
		updated := time.UnixMilli(current.UpdatedUnixMs)
		answer.Updated = &updated
	}
	answerAdmin(w, answer, nil)
}

// textOf is what was written, or what would have been.
func textOf(p *atoll.Policy) []byte {
	if len(p.Text) > 0 {
		return p.Text
	}
	return policy.Format(p)
}

func (a *admin) serveNewPolicy(w http.ResponseWriter, r *http.Request) {
	var next NewPolicy
	if !a.checkAudit(w) || !readAdmin(w, r, &next) {
		return
	}
	change, err := a.setPolicy(r.Context(), next)
	if err != nil || change.Changed {
		diff := ""
		if change != nil {
			diff = change.Diff
		}
		a.auditAdmin(r, "policy set", "policy", diff, err)
	}
	answerAdmin(w, change, err)
}

func (a *admin) setPolicy(ctx context.Context, next NewPolicy) (*PolicyChange, error) {
	parsed, err := policy.Parse([]byte(next.Text))
	if err != nil {
		return nil, refusal(err.Error())
	}
	current, err := a.store.Policy(ctx)
	if err != nil {
		return nil, err
	}
	if next.Revision != nil && *next.Revision != current.Revision {
		return nil, refusal(fmt.Sprintf("the policy is at revision %d, not %d: somebody has changed it since you looked ('atoll policy show')", current.Revision, *next.Revision))
	}
	change := &PolicyChange{Revision: current.Revision, Diff: policy.Diff(current, parsed)}
	if change.Warnings, err = a.policyWarnings(ctx, policy.Compile(current), policy.Compile(parsed)); err != nil {
		return nil, err
	}
	if next.DryRun || bytes.Equal(textOf(current), parsed.Text) {
		return change, nil
	}
	if err := a.store.PutPolicy(ctx, current.Revision, parsed); err != nil {
		return nil, explainAccess(err)
	}
	change.Revision, change.Changed = current.Revision+1, true
	return change, nil
}

// policyWarnings says what an operator should know before a policy takes the place of
// another.
func (a *admin) policyWarnings(ctx context.Context, current, next *policy.Compiled) (warnings []string, err error) {
	before, after := 0, 0
	err = a.everyAccount(ctx, func(record *atoll.Account) bool {
		who := metadata.SubjectOf(record)
		if !record.Disabled && current.Administers(who) {
			before++
		}
		if !record.Disabled && next.Administers(who) {
			after++
		}
		return after == 0
	})
	if before > 0 && after == 0 {
		warnings = append(warnings, "no account has the right admin by this policy: only who may use this socket can give it back")
	}
	if next.AnyRight(policy.Subject{}) && !current.AnyRight(policy.Subject{}) {
		warnings = append(warnings, "by this policy there is something that anybody may do without logging in")
	}
	return warnings, err
}

func (a *admin) servePolicyCheck(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	check, err := a.checkPolicy(r.Context(), query.Get("subject"), query.Get("repository"), query["group"])
	answerAdmin(w, check, err)
}

func (a *admin) checkPolicy(ctx context.Context, subject, repository string, groups []string) (*PolicyCheck, error) {
	who, err := policy.ParseSubject(subject)
	if err != nil {
		return nil, refusal(err.Error())
	}
	if err := a.store.CatchUp(ctx); err != nil {
		return nil, err
	}
	check := &PolicyCheck{Subject: who.String(), Repository: repository, Grants: []PolicyGrant{}}
	switch record, err := a.store.LocalAccount(who.Name); {
	case errors.Is(err, metadata.ErrAccountUnknown): // somebody from a file, or from another issuer
	case err != nil:
		return nil, err
	case metadata.SubjectOf(record).Kind == who.Kind:
		who.Groups, check.Account = record.Groups, "enabled"
		if record.Disabled {
			check.Account = "disabled"
		}
	}
	who.Groups = withGroups(who.Groups, groups, nil)
	check.Groups = slices.Concat([]string{}, who.Groups)
	compiled := a.store.LocalPolicy()
	check.Rights = compiled.Rights(who, repository).String()
	for _, grant := range compiled.Explain(who, repository) {
		check.Grants = append(check.Grants, PolicyGrant{
			Rule: grant.Rule, Subject: grant.Subject, Repositories: grant.Repositories, Rights: grant.Rights.String(),
		})
	}
	return check, nil
}
