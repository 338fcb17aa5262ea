package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/node"
)

// The README's table of settings is what serve --help says.
func TestReadmeListsSettings(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(content), "| key | default | what |\n|-|-|-|\n")
	if !found {
		t.Fatal("README.md has no table of settings")
	}
	got, _, _ := strings.Cut(rest, "\n\n")
	var want []string
	defaults := configValues(node.DefaultConfig())
	for _, s := range settings() {
		usage, value := s.usage, ""
		if given := defaults[s.key]; given != nil {
			value = "`" + s.kind.format(given) + "`"
		} else if before, after, cut := strings.Cut(usage, " (default: "); cut {
			usage, value = before, strings.TrimSuffix(after, ")")
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s |", s.key, value, usage))
	}
	if table := strings.Join(want, "\n"); got != table {
		t.Errorf("the table in README.md should be:\n%s", table)
	}
}
