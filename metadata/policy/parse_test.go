package policy

import (
	"fmt"
	"strings"
	"testing"

	pb "google.golang.org/protobuf/proto"
)

// One look at the error is enough to put all right.
func TestParseTellsAllFaultsWithTheirLines(t *testing.T) {
	_, err := Parse([]byte(`rules:
  - repositories: ["team-[ab]/**"]
    subject: [group:a]
    rights: [pull, write]
  - repositories: "**"
    subjects: [alice, "group:"]
    rights: []
  - {repositories: [a], subjects: [anonymous], rights: [pull], rights: [push]}
  - just words
immutable:
  - repositories: ["**"]
    tags: [1.0, ~, [v1]]
owner: me
`))
	if err == nil {
		t.Fatal("parsed")
	}
	expected := []string{
		`line 13: unknown key "owner" in the policy: its keys are rules, immutable`,
		`line 3: unknown key "subject" in a rule: its keys are repositories, subjects, rights`,
		`line 2: a rule has no subjects`,
		`line 2: pattern "team-[ab]/**": there are no classes, alternatives or negations, write one pattern for each`,
		`line 4: unknown right "write": the rights are pull, push, delete and admin`,
		`line 5: repositories is a single value, and must be a list, as in [a, b]`,
		`line 6: unknown subject "alice": a subject is anonymous, authenticated, user:NAME, robot:NAME or group:NAME`,
		`line 6: subject "group:" has no name behind the colon`,
		`line 7: rights is empty: name at least one, or remove the rule`,
		`line 8: rights is there twice, first in line 8`,
		`line 9: a rule is a single value, and must be a mapping with the keys repositories, subjects, rights`,
		`line 12: an entry of tags is empty, and must be a text`,
		`line 12: an entry of tags is a list, and must be a text`,
	}
	if actual := strings.Split(err.Error(), "\n"); fmt.Sprint(actual) != fmt.Sprint(expected) {
		t.Errorf("faults are\n%s\nwant\n%s", strings.Join(actual, "\n"), strings.Join(expected, "\n"))
	}
}

func TestParseRefuses(t *testing.T) {
	rule := "- {repositories: [a], subjects: [anonymous], rights: [pull]}\n"
	for _, test := range []struct{ text, says string }{
		{"", "empty"},
		{"# nothing\n", "empty"},
		{"~", "empty"},
		{"immutable: []", "has no rules"},
		{"rules:", "empty"},
		{"- a", "must be a mapping"},
		{"rules: []\n---\nrules: []", "second document"},
		{"rules: [", "no YAML"},
		{"rules:\n - {repositories: [**], subjects: [anonymous], rights: [pull]}", `need quotes`},
		{"rules: &all []\nimmutable: *all", "alias"},
		{"rules:\n" + strings.Repeat(rule, MaxRules+1), "1001 rules are more than 1000"},
		{"rules: []\n#" + strings.Repeat("x", MaxTextBytes), "at most"},
	} {
		if _, err := Parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%.60q: error is %v, want one with %q", test.text, err, test.says)
		}
	}
	if _, err := Parse([]byte("rules:\n" + strings.Repeat(rule, MaxRules))); err != nil {
		t.Error(err)
	}
}

func TestParseTellsSomeOfVeryManyFaults(t *testing.T) {
	_, err := Parse([]byte("rules: [" + strings.Repeat("x,", 100) + "]"))
	if err == nil || strings.Count(err.Error(), "\n") != maxFaults || !strings.HasSuffix(err.Error(), "and 80 more") {
		t.Errorf("error is %v", err)
	}
}

// A version number is a text, whatever YAML thinks of it.
func TestParseTakesNumbersAsTheyAreWritten(t *testing.T) {
	p := mustParse(t, "rules: []\nimmutable: [{repositories: ['**'], tags: [1.10, 0x10, yes]}]")
	if tags := fmt.Sprint(p.GetImmutable()[0].GetTags()); tags != "[1.10 0x10 yes]" {
		t.Errorf("tags are %s", tags)
	}
}

// FuzzParse: whatever is written, it is refused, or means the same once it was
// formatted.
func FuzzParse(f *testing.F) {
	f.Add([]byte(teams))
	f.Add(defaultText)
	f.Add([]byte("rules: &a [*a]"))
	f.Add([]byte("rules:\n- <<: {repositories: [a]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(Format(p))
		if err != nil {
			t.Fatalf("%s\nis formatted as\n%s\n%v", text, Format(p), err)
		}
		if Diff(p, again) != "" || Check(again) != nil {
			t.Fatalf("formatting changes %s", Diff(p, again))
		}
		p.Text, again.Text = nil, nil
		if !pb.Equal(p, again) {
			t.Fatalf("%v became %v", p, again)
		}
		Compile(p).Rights(Subject{User, "u", []string{"g"}}, "a/b")
	})
}
