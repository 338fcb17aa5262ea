package gateway

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// rules is how many rules docs/protocol.md has.
const rules = 83

var (
	ruleStart = regexp.MustCompile(`^(\d+)\. (.+)$`)
	// namedTest is `package.Test`, or `package.TestScripts/file`.
	namedTest = regexp.MustCompile("`([a-z/]+)\\.(Test[A-Za-z0-9]+)(?:/([a-z0-9-]+))?`")
	// reason says why there is no test.
	reason = regexp.MustCompile(`Not yet: .{20,}\.$`)
)

// TestProtocolPage: every rule is there, and the tests that it names exist.
func TestProtocolPage(t *testing.T) {
	page, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOf{}
	for _, fault := range checkRules(string(page), tests.exists) {
		t.Error(fault)
	}
	if len(tests) < 3 {
		t.Errorf("only the tests of %d packages were looked for", len(tests))
	}
}

// checkRules returns what is wrong with the page.
func checkRules(page string, exists func(pkg, test, script string) bool) (faults []string) {
	texts := ruleTexts(page)
	for i, rule := range texts {
		if rule.number != i+1 {
			return append(faults, fmt.Sprintf("rule %d stands where rule %d should", rule.number, i+1))
		}
		named := namedTest.FindAllStringSubmatch(rule.text, -1)
		if strings.Contains(rule.text, "Tests: ") == (len(named) == 0) {
			faults = append(faults, fmt.Sprintf("rule %d names no tests, or names them without saying so", rule.number))
		}
		if len(named) == 0 && !reason.MatchString(rule.text) {
			faults = append(faults, fmt.Sprintf("rule %d has neither tests nor a reason", rule.number))
		}
		for _, test := range named {
			if !exists(test[1], test[2], test[3]) {
				faults = append(faults, fmt.Sprintf("rule %d: there is no %s", rule.number, test[0]))
			}
		}
	}
	if len(texts) != rules {
		faults = append(faults, fmt.Sprintf("there are %d rules, not %d", len(texts), rules))
	}
	return faults
}

type ruleText struct {
	number int
	text   string
}

// ruleTexts returns the numbered paragraphs, each as one line.
func ruleTexts(page string) (texts []ruleText) {
	within := false
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\n")
		start := ruleStart.FindStringSubmatch(line)
		switch {
		case start != nil:
			number, _ := strconv.Atoi(start[1]) // Digits by its pattern.
			texts = append(texts, ruleText{number, start[2]})
			within = true
		case within && strings.HasPrefix(line, "  "):
			texts[len(texts)-1].text += " " + strings.TrimSpace(line)
		default:
			within = false
		}
	}
	return texts
}

// testsOf has the tests of each package that was looked at, by its folder.
type testsOf map[string]map[string]bool

// exists says whether a package has a test, and the script if one is named.
func (o testsOf) exists(pkg, test, script string) bool {
	folder := filepath.Join("..", filepath.FromSlash(pkg))
	if o[pkg] == nil {
		o[pkg] = map[string]bool{}
		files, _ := filepath.Glob(filepath.Join(folder, "*_test.go")) // The pattern is well formed.
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				continue // Its tests are missing then.
			}
			for _, declaration := range parsed.Decls {
				if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil {
					o[pkg][f.Name.Name] = true
				}
			}
		}
	}
	if script == "" {
		return o[pkg][test]
	}
	_, err := os.Stat(filepath.Join(folder, "testdata", script+".txt"))
	return test == "TestScripts" && o[pkg][test] && err == nil
}

// TestProtocolPageFaults: what TestProtocolPage is there to find is found.
func TestProtocolPageFaults(t *testing.T) {
	var page strings.Builder
	for i := range rules {
		fmt.Fprintf(&page, "%d. Something. Tests: `gateway.TestReplies`,\n    `gateway.TestScripts/base`.\n", i+1)
	}
	good := page.String()
	tests := testsOf{}
	if faults := checkRules(good, tests.exists); len(faults) > 0 {
		t.Fatal(faults)
	}
	for _, change := range [][2]string{
		{"83. Something. Tests: `gateway.TestReplies`,\n    `gateway.TestScripts/base`.\n", ""},
		{"7. Something", "8. Something"},
		{"7. Something", "7 Something"},
		{"7. Something. Tests: `gateway.TestReplies`,", "7. Something. Tests: `gateway.TestNothing`,"},
		{"7. Something. Tests: `gateway.TestReplies`,", "7. Something. Tests: `nowhere.TestReplies`,"},
		{"7. Something. Tests: `gateway.TestReplies`,\n    `gateway.TestScripts/base`", "7. Something. Tests: `gateway.TestScripts/nothing`"},
		{"7. Something. Tests: `gateway.TestReplies`,\n    `gateway.TestScripts/base`", "7. Something. Tests: `gateway.TestReplies/base`"},
		{"7. Something. Tests: `gateway.TestReplies`,\n    `gateway.TestScripts/base`", "7. Something"},
		{"7. Something. Tests: `gateway.TestReplies`,\n    `gateway.TestScripts/base`", "7. Something. Not yet: no"},
		{"7. Something. Tests: ", "7. Something. "},
	} {
		bad := strings.Replace(good, "\n"+change[0], "\n"+change[1], 1)
		if bad == good {
			t.Fatalf("%q is not on the page", change[0])
		}
		if faults := checkRules(bad, tests.exists); len(faults) == 0 {
			t.Errorf("%q: nothing was found", change[1])
		}
	}
}
