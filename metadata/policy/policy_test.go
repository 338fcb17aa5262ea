package policy

import (
	"fmt"
	"strings"
	"testing"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

func mustParse(t testing.TB, text string) *proto.Policy {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const teams = `
rules:
  - repositories: ["team-a/**"]
    subjects: [group:team-a]
    rights: [push]
  - repositories: ["team-a/**", "shared/*"]
    subjects: [authenticated, robot:ci]
    rights: [pull]
  - repositories: ["public/**"]
    subjects: [anonymous]
    rights: [pull]
  - repositories: ["**"]
    subjects: [user:root]
    rights: [admin]
  - repositories: ["team-a/old"]
    subjects: [user:janitor]
    rights: [delete]
immutable:
  - repositories: ["team-a/**"]
    tags: ["v*.*.*", "release-??"]
`

func TestRights(t *testing.T) {
	c := Compile(mustParse(t, teams))
	user := func(name string, groups ...string) Subject { return Subject{User, name, groups} }
	for _, test := range []struct {
		who        Subject
		repository string
		rights     string
	}{
		{Subject{}, "public/tools/go", "pull"},
		{Subject{}, "team-a/app", "nothing"},
		{user("alice"), "team-a/app", "pull"},
		{user("alice"), "public/tools", "pull"}, // to log in takes nothing away
		{user("alice", "team-b", "team-a"), "team-a/app", "pull, push"},
		{user("alice", "team-a"), "team-b/app", "nothing"},
		{user("alice", "team-a"), "team-ab/app", "nothing"},
		{user("alice"), "shared/base", "pull"},
		{user("alice"), "shared/base/old", "nothing"},
		{user("root"), "anything/at/all", "pull, push, delete, admin"},
		{Subject{Robot, "root", nil}, "anything/at/all", "nothing"}, // another kind of the same name
		{user("ci"), "public", "pull"},
		{Subject{Robot, "ci", nil}, "team-a/app", "pull"},
		{Subject{Robot, "other", nil}, "team-a/app", "nothing"}, // "authenticated" are users
		{Subject{Robot, "other", []string{"team-a"}}, "team-a/app", "pull, push"},
		{user("janitor"), "team-a/old", "pull, delete"},
		{user("group:team-a"), "team-a/app", "pull"}, // a name is no subject
		{Subject{Kind(9), "root", []string{"team-a"}}, "team-a/app", "nothing"},
		{Subject{Anonymous, "root", []string{"team-a"}}, "team-a/app", "nothing"}, // nobody has no groups
	} {
		rights := c.Rights(test.who, test.repository)
		if rights.String() != test.rights {
			t.Errorf("%v %v may %v in %s, want %s", test.who, test.who.Groups, rights, test.repository, test.rights)
		}
		explained := Rights(0)
		for _, grant := range c.Explain(test.who, test.repository) {
			explained |= grant.Rights
		}
		if explained != rights {
			t.Errorf("%v in %s: explained as %v, is %v", test.who, test.repository, explained, rights)
		}
	}
}

func TestExplainNamesTheRule(t *testing.T) {
	c := Compile(mustParse(t, teams))
	actual := fmt.Sprint(c.Explain(Subject{User, "alice", []string{"team-a"}}, "team-a/app"))
	if expected := "[{2 authenticated team-a/** pull} {1 group:team-a team-a/** pull, push}]"; actual != expected {
		t.Errorf("explained as %s, want %s", actual, expected)
	}
}

func TestAnyRight(t *testing.T) {
	c := Compile(mustParse(t, "rules: [{repositories: [a], subjects: [group:g, robot:r], rights: [pull]}]"))
	for _, test := range []struct {
		who  Subject
		want bool
	}{
		{Subject{}, false},
		{Subject{User, "u", nil}, false},
		{Subject{User, "u", []string{"h", "g"}}, true},
		{Subject{Robot, "r", nil}, true},
		{Subject{User, "r", nil}, false},
	} {
		if c.Administers(test.who) {
			t.Errorf("%v administers by the right to pull", test.who)
		}
		if got := c.AnyRight(test.who); got != test.want {
			t.Errorf("%v %v has any right: %v", test.who, test.who.Groups, got)
		}
	}
}

func TestAdministers(t *testing.T) {
	c := Compile(mustParse(t, teams))
	if !c.Administers(Subject{User, "root", nil}) || c.Administers(Subject{User, "alice", []string{"team-a"}}) || c.Administers(Subject{}) {
		t.Error("others administer than the rules say")
	}
}

func TestImmutable(t *testing.T) {
	c := Compile(mustParse(t, teams))
	for _, test := range []struct {
		repository, tag string
		want            bool
	}{
		{"team-a/app", "v1.2.3", true},
		{"team-a/app", "v1.2.3-rc1", true},
		{"team-a/app", "v1.2", false},
		{"team-a/app", "release-07", true},
		{"team-a/app", "release-7", false},
		{"team-a/app", "latest", false},
		{"team-b/app", "v1.2.3", false},
	} {
		if got := c.Immutable(test.repository, test.tag); got != test.want {
			t.Errorf("%s:%s immutable: %v", test.repository, test.tag, got)
		}
		if test.want && !c.AnyImmutable(test.repository) {
			t.Errorf("%s has no immutable tags", test.repository)
		}
	}
	if c.AnyImmutable("team-b/app") {
		t.Error("team-b/app has immutable tags")
	}
}

// The default policy is what the documentation promises of the first day.
func TestDefault(t *testing.T) {
	if err := Check(Default()); err != nil {
		t.Fatal(err)
	}
	c := Compile(Default())
	for _, test := range []struct {
		who    Subject
		rights Rights
	}{
		{Subject{}, 0},
		{Subject{User, "new", nil}, Pull},
		{Subject{User, "dev", []string{"developers"}}, Pull | Push},
		{Subject{User, "boss", []string{"admins"}}, All},
		{Subject{Robot, "ci", nil}, 0},
		{Subject{Robot, "ci", []string{"developers"}}, Pull | Push},
	} {
		if got := c.Rights(test.who, "any/where"); got != test.rights {
			t.Errorf("%v %v may %v, want %v", test.who, test.who.Groups, got, test.rights)
		}
	}
	if c.Revision() != 0 || c.AnyImmutable("any/where") {
		t.Errorf("default policy has revision %d, immutable tags %v", c.Revision(), c.AnyImmutable("any/where"))
	}
}

// What Check refuses gives nothing, should it ever come to that.
func TestCompileOfNonsenseGivesNothing(t *testing.T) {
	nonsense := &proto.Policy{
		Rules: []*proto.PolicyRule{
			{Repositories: []string{"["}, Subjects: []string{"anonymous"}, Rights: []string{"pull"}},
			{Repositories: []string{"**"}, Subjects: []string{"user:*"}, Rights: []string{"pull"}},
			{Repositories: []string{"**"}, Subjects: []string{"anonymous"}, Rights: []string{"own"}},
		},
	}
	if err := Check(nonsense); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("check finds %v", err)
	}
	if rights := Compile(nonsense).Rights(Subject{}, "a"); rights != 0 {
		t.Errorf("nonsense gives %v", rights)
	}
}

func TestParseSubject(t *testing.T) {
	for _, text := range []string{"anonymous", "user:a", "robot:b:c"} {
		if s, err := ParseSubject(text); err != nil || s.String() != text {
			t.Errorf("%s became %v (%v)", text, s, err)
		}
	}
	for _, text := range []string{"", "alice", "group:g", "authenticated", "user:", "user:a b", "user:\x7f", "user:*"} {
		if s, err := ParseSubject(text); err == nil {
			t.Errorf("%q became %v", text, s)
		}
	}
}

// manyRules is a policy as large as one may be.
func manyRules(t testing.TB) *Compiled {
	t.Helper()
	var text strings.Builder
	text.WriteString("rules:\n")
	for i := range MaxRules {
		fmt.Fprintf(&text, " - {repositories: [\"team-%d/**/app-*\"], subjects: [group:team-%d, authenticated], rights: [pull, push]}\n", i, i)
	}
	return Compile(mustParse(t, text.String()))
}

func TestRightsAllocatesNothing(t *testing.T) {
	c := manyRules(t)
	who := Subject{User, "u", []string{"team-7", "team-999"}}
	if c.Rights(who, "team-999/a/b/app-1") != Pull|Push {
		t.Fatal("the rule is not found")
	}
	if n := testing.AllocsPerRun(100, func() { c.Rights(who, "team-999/a/b/app-1") }); n != 0 {
		t.Errorf("one question costs %v allocations", n)
	}
}

func BenchmarkRights(b *testing.B) {
	c := manyRules(b)
	who := Subject{User, "u", []string{"team-7", "team-999"}}
	b.ReportAllocs()
	for b.Loop() {
		c.Rights(who, "team-999/a/b/app-1")
	}
}

func TestDiff(t *testing.T) {
	old := mustParse(t, teams)
	reordered := pb.Clone(old).(*proto.Policy)
	reordered.Rules[0], reordered.Rules[3] = reordered.Rules[3], reordered.Rules[0]
	if diff := Diff(old, reordered); diff != "" {
		t.Errorf("another order is a difference: %s", diff)
	}
	next := mustParse(t, `
rules:
  - {repositories: ["team-a/**"], subjects: [group:team-a], rights: [push, delete]}
immutable: []
`)
	old.Rules = old.Rules[:1]
	expected := `- group:team-a may push in team-a/**
- tags release-??, v*.*.* stay where they are in team-a/**
+ group:team-a may delete, push in team-a/**
`
	if diff := Diff(old, next); diff != expected {
		t.Errorf("difference is\n%s, want\n%s", diff, expected)
	}
}
