package policy

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var (
	yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	rightsRow = regexp.MustCompile(`(?m)^\| (anonymous|(?:user|robot):\S+)(?: in (\S+))? \| (\S+) \| ([a-z, ]+) \|$`)
)

// The policies that docs/access.md shows are policies, and the first one gives what the
// page says that it gives.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../docs/access.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := yamlBlock.FindAllSubmatch(page, -1)
	if len(blocks) == 0 {
		t.Fatal("the page shows no policy")
	}
	for _, block := range blocks {
		if _, err := Parse(block[1]); err != nil {
			t.Errorf("%s\n%v", block[1], err)
		}
	}
	example := Compile(mustParse(t, string(blocks[0][1])))
	rows := rightsRow.FindAllStringSubmatch(string(page), -1)
	if len(rows) < 10 {
		t.Fatalf("the page has %d rows of rights", len(rows))
	}
	for _, row := range rows {
		who, err := ParseSubject(row[1])
		if err != nil {
			t.Error(err)
		}
		if row[2] != "" {
			who.Groups = []string{row[2]}
		}
		if rights := example.Rights(who, row[3]).String(); rights != row[4] {
			t.Errorf("%s: it gives %s", row[0], rights)
		}
	}
	if !example.Immutable("any/where", "v1.2.3") || example.Immutable("any/where", "latest") {
		t.Error("other tags are immutable than the page says")
	}
	for what, says := range map[string]bool{
		"the text's size": strings.Contains(string(page), "| 192 KiB |") == (MaxTextBytes == 192<<10),
		"the rules":       strings.Contains(string(page), "| 1000 each |") == (MaxRules == 1000),
		"a pattern":       strings.Contains(string(page), "| 255 bytes |") == (MaxPatternBytes == 255),
	} {
		if !says {
			t.Errorf("the page has another limit for %s", what)
		}
	}
}
