package gateway

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// TestAuditLogIsVisible: a name that was tried is written such that no terminal takes it
// for a command, and reads as what was sent.
func TestAuditLogIsVisible(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	log, err := OpenAuditLog(path, "n1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	names := []string{"a\x1b[2J", "a\x7fb", "a\u009b2J", "a\u0085b", "a\u202eb", "a\u2028b", "a\u200bb", "a\U000e0041b", "a\r\nb", `a"b\c`, "Ærø 北京", "plain"}
	for _, name := range names {
		if err := log.Write(AuditRecord{Event: eventLogin, Login: name}); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if len(lines) != len(names) {
		t.Fatalf("%d lines for %d names: %q", len(lines), len(names), content)
	}
	for i, line := range lines {
		var record AuditRecord
		if err := json.Unmarshal([]byte(line), &record); err != nil || record.Login != names[i] {
			t.Errorf("%q reads as %q, %v", names[i], record.Login, err)
		}
		for _, r := range line {
			if r < ' ' || r >= 0x7f && r <= 0x9f || strings.ContainsRune("\u202e\u2028\u200b\U000e0041", r) {
				t.Errorf("%q is written with %U as it is", names[i], r)
			}
		}
	}
}
