package node

import (
	"strings"
	"testing"

	"github.com/atollregistry/atoll/metadata/policy"
)

const teamPolicy = `# ours
rules:
  - repositories: ["team-a/**"]
    subjects: ["group:team-a"]
    rights: [push]
  - repositories: ["**"]
    subjects: ["user:root"]
    rights: [admin]
`

func (o *office) setPolicy(t *testing.T, next NewPolicy) *PolicyChange {
	t.Helper()
	change, err := SetPolicy(t.Context(), o.dir, next)
	if err != nil {
		t.Fatal(err)
	}
	return change
}

func TestPolicyIsShownAndSet(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	current, err := FetchPolicy(t.Context(), o.dir)
	if err != nil || current.Revision != 0 || current.Updated != nil || current.Text != string(policy.Default().GetText()) {
		t.Fatalf("policy of a new cluster is %+v (%v)", current, err)
	}
	if change := o.setPolicy(t, NewPolicy{Text: current.Text}); change.Changed || change.Diff != "" || change.Revision != 0 {
		t.Errorf("the same policy changes %+v", change)
	}
	dry := o.setPolicy(t, NewPolicy{Text: teamPolicy, DryRun: true})
	if dry.Changed || !strings.Contains(dry.Diff, "+ group:team-a may push in team-a/**\n") || !strings.Contains(dry.Diff, "- authenticated may pull in **\n") {
		t.Errorf("dry run says %+v", dry)
	}
	change := o.setPolicy(t, NewPolicy{Text: teamPolicy})
	if !change.Changed || change.Revision != 1 || change.Diff != dry.Diff || o.store.LocalPolicy().Revision() != 1 {
		t.Errorf("change is %+v", change)
	}
	if current, err = FetchPolicy(t.Context(), o.dir); err != nil || current.Text != teamPolicy || current.Revision != 1 || current.Updated == nil {
		t.Errorf("policy is %+v (%v)", current, err)
	}
	if change := o.setPolicy(t, NewPolicy{Text: teamPolicy + "# more words\n"}); !change.Changed || change.Diff != "" || change.Revision != 2 {
		t.Errorf("another comment changes %+v", change)
	}
	if strings.Count(o.written.String(), `"event":"policy set"`) != 2 {
		t.Errorf("written down is %s", o.written)
	}
}

func TestMistakesWithThePolicy(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	wrong := uint64(7)
	set := func(next NewPolicy) error { _, err := SetPolicy(t.Context(), o.dir, next); return err }
	check := func(subject string) error { _, err := CheckPolicy(t.Context(), o.dir, subject, "app", nil); return err }
	for _, test := range []struct {
		err  error
		says string
	}{
		{set(NewPolicy{Text: "rules:\n- repositories: [a]\n  subjects: [alice]\n  rights: [own]\n"}), `line 3: unknown subject "alice"`},
		{set(NewPolicy{}), "policy is empty"},
		{set(NewPolicy{Text: teamPolicy, Revision: &wrong}), "at revision 0, not 7"},
		{set(NewPolicy{Text: strings.Repeat("#", policy.MaxTextBytes+1)}), "at most"},
		{check("alice"), "user:NAME"},
		{check("group:team-a"), "not one subject"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.says) {
			t.Errorf("error is %v, want one with %q", test.err, test.says)
		}
	}
	if o.store.LocalPolicy().Revision() != 0 {
		t.Error("a mistake has changed the policy")
	}
}

func TestPolicyChangeWarns(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	open := "rules: [{repositories: ['**'], subjects: [anonymous], rights: [pull]}]"
	if warnings := o.setPolicy(t, NewPolicy{Text: open, DryRun: true}).Warnings; len(warnings) != 1 || !strings.Contains(warnings[0], "without logging in") {
		t.Errorf("warnings are %q", warnings) // nobody has administered before
	}
	o.create(t, NewAccount{Name: "chief", Kind: KindRobot, Groups: []string{"admins"}})
	if warnings := o.setPolicy(t, NewPolicy{Text: teamPolicy}).Warnings; len(warnings) != 1 || !strings.Contains(warnings[0], "no account has the right admin") {
		t.Errorf("warnings are %q", warnings)
	}
}

func TestPolicyIsExplained(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	o.setPolicy(t, NewPolicy{Text: teamPolicy})
	o.create(t, NewAccount{Name: "alice", Kind: KindUser, Groups: []string{"team-a"}})
	o.create(t, NewAccount{Name: "root", Kind: KindRobot})
	for _, test := range []struct {
		subject, repository string
		groups              []string
		rights, account     string
		rule                int
	}{
		{"user:alice", "team-a/app", nil, "pull, push", "enabled", 1},
		{"user:alice", "team-b/app", nil, "nothing", "enabled", 0},
		{"user:bob", "team-a/app", []string{"team-a"}, "pull, push", "", 1},
		{"user:root", "app", nil, "pull, push, delete, admin", "", 2}, // the account is a robot's
		{"robot:root", "app", nil, "nothing", "enabled", 0},
		{"anonymous", "app", nil, "nothing", "", 0},
	} {
		check, err := CheckPolicy(t.Context(), o.dir, test.subject, test.repository, test.groups)
		if err != nil {
			t.Errorf("%s: %v", test.subject, err)
			continue
		}
		rule := 0
		if len(check.Grants) > 0 {
			rule = check.Grants[0].Rule
		}
		if check.Rights != test.rights || check.Account != test.account || rule != test.rule {
			t.Errorf("%s in %s: %+v", test.subject, test.repository, check)
		}
	}
}
