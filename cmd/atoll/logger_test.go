package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/node"
)

// TestLogIsVisible: nothing that comes from outside reaches a terminal as a command, in
// neither format, and programs read from the log what was sent.
func TestLogIsVisible(t *testing.T) {
	hostile := map[string]string{
		"colours": "\x1b[41mred\x1b[2J", "title": "\x1b]0;title\x07", "line break": "a\n{\"level\":\"error\"}\r\n", "NUL": "a\x00b",
		"backspace": "a\b\b\bb", "DEL": "a\x7fb", "C1 CSI": "a\u009b31mb", "C1 byte": "a\x9b31mb", "next line": "a\u0085b",
		"right to left": "a\u202etxt.exe", "isolate": "a\u2066b", "line separator": "a\u2028b", "no width": "a\u200bb", "tag": "a\U000e0041b",
		"quotes": `a"b\c`, "not UTF-8": "a\xff\xfeb", "letters": "Ærøskøbing 北京",
	}
	for _, format := range []string{"json", "console"} {
		for name, text := range hostile {
			var out bytes.Buffer
			log := newLogger(node.LogConfig{Level: "info", Format: format}, &out)
			log.Info().Str("path", text).Str("agent", text).Err(errors.New(text)).Msg("request")
			line := out.String()
			if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
				t.Errorf("%s, %s: not one line: %q", format, name, line)
			}
			for _, r := range strings.TrimSuffix(withoutColours(format, line), "\n") {
				if r < ' ' || r == '\x7f' || r >= 0x80 && r <= 0x9f || strings.ContainsRune("\u202e\u2066\u2028\u200b\U000e0041", r) {
					t.Errorf("%s, %s: %U is written as it is: %q", format, name, r, line)
				}
			}
			if format == "console" {
				continue
			}
			var entry struct{ Path, Error string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatalf("%s: %v: %q", name, err, line)
			}
			if want := strings.ToValidUTF8(text, "\ufffd"); name != "not UTF-8" && name != "C1 byte" && (entry.Path != want || entry.Error != want) {
				t.Errorf("%s: reads as %q", name, entry.Path)
			}
		}
	}
}

// withoutColours takes out the colours that the console format writes itself.
func withoutColours(format, line string) string {
	if format != "console" {
		return line
	}
	for _, colour := range []string{"\x1b[90m", "\x1b[32m", "\x1b[36m", "\x1b[31m", "\x1b[1m", "\x1b[0m"} {
		line = strings.ReplaceAll(line, colour, "")
	}
	return line
}
