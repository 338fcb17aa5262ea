package policy

import (
	"path"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestRepositoryPattern(t *testing.T) {
	for _, test := range []struct {
		pattern  string
		matching string
		others   string
	}{
		{"app", "app", "ap apps app/x x/app"},
		{"*", "app a", "a/b"},
		{"**", "a a/b a/b/c", ""},
		{"team/*", "team/a", "team team/a/b teams/a"},
		{"team/**", "team team/a team/a/b", "teams team-a/b x/team/a"},
		{"team/**/app", "team/app team/x/app team/x/y/app", "team/apps team/app/x app"},
		{"**/app", "app a/app a/b/app", "a/apps app/a"},
		{"**/a/**/b", "a/b x/a/b a/x/b a/a/b/b a/b/c/b", "b/a a/b/c"},
		{"a/*/b/**/c", "a/x/b/c a/x/b/y/z/c", "a/b/c a/x/y/b/c"},
		{"app-*", "app- app-1 app-1-2", "app apps"},
		{"*-app-*", "a-app-b -app-app-", "a-app"},
		{"**/**", "a a/b", ""},
		{"*a*b", "ab xaxb aabb", "ba abc"},
	} {
		p, err := parseRepositoryPattern(test.pattern)
		if err != nil {
			t.Errorf("%s: %v", test.pattern, err)
			continue
		}
		if p.String() != test.pattern {
			t.Errorf("%s became %s", test.pattern, &p)
		}
		for _, name := range strings.Fields(test.matching) {
			if !p.matches(name) {
				t.Errorf("%s does not match %s", test.pattern, name)
			}
		}
		for _, name := range strings.Fields(test.others) {
			if p.matches(name) {
				t.Errorf("%s matches %s", test.pattern, name)
			}
		}
	}
}

func TestPatternsThatAreNone(t *testing.T) {
	for _, text := range []string{
		"", "/a", "a/", "a//b", "a**", "**b/c", "***", "a?", "[a]", "{a,b}", "!a", "^a", `a\*`, "Team/a", "a b", "ä", strings.Repeat("a", 256),
	} {
		if p, err := parseRepositoryPattern(text); err == nil {
			t.Errorf("%q is a pattern of repositories: %v", text, p)
		}
	}
	for _, text := range []string{"", "[v]", "a/b", "v 1", "ü", `\*`, strings.Repeat("v", 256)} {
		if p, err := parseTagPattern(text); err == nil {
			t.Errorf("%q is a pattern of tags: %v", text, p)
		}
	}
}

// regexpOf says the same as a pattern, in a language with an implementation that is
// known to be right.
func regexpOf(pattern string) *regexp.Regexp {
	// With a slash behind each element, ** is any number of elements with theirs.
	expression := ""
	for _, element := range strings.Split(pattern, "/") {
		if element == anyElements {
			expression += "([^/]*/)*"
			continue
		}
		expression += strings.ReplaceAll(regexp.QuoteMeta(element), `\*`, "[^/]*") + "/"
	}
	return regexp.MustCompile("^" + expression + "$")
}

func FuzzRepositoryPattern(f *testing.F) {
	f.Add("team/**/a*b/*", "team/x/aab/c")
	f.Add("**/a/**/b/**", "a/b/a/b/c")
	f.Add(strings.Repeat("**/a/", 40)+"b", strings.Repeat("a/", 120)+"c")
	f.Fuzz(func(t *testing.T, text, name string) {
		p, err := parseRepositoryPattern(text)
		if err != nil || len(name) > 255 || strings.Contains(name, "\n") {
			t.Skip()
		}
		if expected := regexpOf(text).MatchString(name + "/"); p.matches(name) != expected {
			t.Errorf("pattern %q matches %q: %v", text, name, !expected)
		}
	})
}

func FuzzTagPattern(f *testing.F) {
	f.Add("v*.?.*", "v1.2.3")
	f.Add(strings.Repeat("*a", 60), strings.Repeat("a", 128))
	f.Fuzz(func(t *testing.T, text, tag string) {
		pattern, err := parseTagPattern(text)
		if err != nil || len(tag) > 128 || strings.Contains(tag, "/") || !isASCII(tag) {
			t.Skip()
		}
		expected, err := path.Match(strings.ReplaceAll(pattern, "**", "*"), tag)
		if err != nil {
			t.Skip()
		}
		if matchGlob(pattern, tag) != expected {
			t.Errorf("pattern %q matches %q: %v", text, tag, !expected)
		}
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// The patterns that make matchers by backtracking take for ever take no time here.
func TestMatchingTakesBoundedTime(t *testing.T) {
	begin := time.Now()
	stars, err := parseRepositoryPattern(strings.Repeat("**/a*/", 42) + "b")
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if stars.matches(strings.Repeat("a/", 127)) {
			t.Fatal("matched")
		}
		if matchGlob(strings.Repeat("*a", 127)+"b", strings.Repeat("a", 255)) {
			t.Fatal("matched")
		}
	}
	if took := time.Since(begin); took > 30*time.Second { // exponential time does not end at all
		t.Errorf("2000 matches took %v", took)
	}
}
