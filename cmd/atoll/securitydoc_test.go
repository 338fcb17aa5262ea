package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// maxSetupLines is how long a set-up may be, for all of its commands.
const maxSetupLines = 10

// fenced finds the blocks of one language in a page.
func fenced(page, language string) (blocks []string) {
	for _, part := range strings.Split(page, "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		blocks = append(blocks, block)
	}
	return blocks
}

// commandLines are the commands of a block of shell, with lines that go on in the next
// one put together.
func commandLines(block string) []string {
	return strings.Split(strings.ReplaceAll(block, "\\\n", " "), "\n")
}

// redirection is what a shell takes out of a command line. There are no quotes.
var redirection = regexp.MustCompile(`\s[<>]\s*\S+`)

// checkCommand says what is wrong with a command line of atoll, if anything.
func checkCommand(line string) error {
	args := strings.Fields(redirection.ReplaceAllString(line, ""))
	command, rest, err := newRootCommand().Find(args[1:])
	if err != nil {
		return err
	}
	if !command.HasParent() || command.HasSubCommands() {
		return fmt.Errorf("%q is not a whole command", line)
	}
	if err := command.ParseFlags(rest); err != nil {
		return err
	}
	return command.ValidateArgs(command.Flags().Args())
}

// TestSecurityCommands: every command line of atoll in docs/security.md and README.md
// is one that this program takes.
func TestSecurityCommands(t *testing.T) {
	for page, least := range map[string]int{"docs/security.md": 25, "README.md": 4} {
		content, err := os.ReadFile(filepath.Join("..", "..", page))
		if err != nil {
			t.Fatal(err)
		}
		checked := 0
		for _, block := range fenced(string(content), "sh") {
			for _, line := range commandLines(block) {
				line, _, _ = strings.Cut(line, " #")
				if !strings.HasPrefix(line, "atoll ") {
					continue
				}
				checked++
				if err := checkCommand(line); err != nil {
					t.Errorf("%s: %s: %v", page, line, err)
				}
			}
		}
		if checked < least {
			t.Errorf("%s: %d command lines were found, there should be %d: is the form another one?", page, checked, least)
		}
	}
	for _, line := range []string{"atoll sevre", "atoll serve --no-such-flag", "atoll user", "atoll user add", "atoll token revoke", "atoll robot create a b"} {
		if checkCommand(line) == nil {
			t.Errorf("%q is taken for a command", line)
		}
	}
}

// TestSecuritySettings: every configuration in docs/security.md is one that a node
// starts with, as far as that can be said without its files.
func TestSecuritySettings(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := fenced(string(content), "yaml")
	if len(blocks) < 3 {
		t.Fatalf("%d configurations", len(blocks))
	}
	for _, block := range blocks {
		file := filepath.Join(t.TempDir(), "atoll.yaml")
		if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
		flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		addSettingFlags(flags)
		if err := flags.Parse([]string{"--config=" + file}); err != nil {
			t.Fatal(err)
		}
		cfg, err := loadConfig(flags, nil)
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil {
			t.Errorf("%v\n%s", err, block)
		}
	}
	// Serve's command lines are whole, too.
	for _, block := range fenced(string(content), "sh") {
		for _, line := range commandLines(block) {
			args, serves := strings.CutPrefix(line, "atoll serve ")
			if !serves || strings.Contains(line, "--config") {
				continue
			}
			flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			addSettingFlags(flags)
			if err := flags.Parse(strings.Fields(args)); err != nil {
				t.Fatal(err)
			}
			cfg, err := loadConfig(flags, nil)
			if err == nil {
				err = cfg.Validate()
			}
			if err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}

// TestSetupsAreShort: nobody reads more than ten lines to get from nothing to a set-up.
func TestSetupsAreShort(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, section := range strings.Split(string(content), "\n## ")[1:] {
		title, _, _ := strings.Cut(section, "\n")
		lines := 0
		for _, block := range fenced(section, "sh") {
			lines += strings.Count(block, "\n") + 1
		}
		if lines > maxSetupLines {
			t.Errorf("%s: %d lines of commands", title, lines)
		}
	}
}
