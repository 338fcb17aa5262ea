package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/atollregistry/atoll/node"
)

// parse reads a configuration from a file's content, an environment and flags.
func parse(t *testing.T, content string, environ, args []string) (node.Config, error) {
	t.Helper()
	if content != "" {
		path := filepath.Join(t.TempDir(), "atoll.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		environ = append(environ, configVariable+"="+path)
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	addSettingFlags(flags)
	if err := flags.Parse(args); err != nil {
		return node.Config{}, err
	}
	return loadConfig(flags, environ)
}

func TestConfigPrecedence(t *testing.T) {
	file := "name: of-file\nzone: of-file\nparity: 1\nregistry:\n  listen: of-file:1\n"
	environ := []string{"ATOLL_NAME=of-environment", "ATOLL_ZONE=of-environment", "PATH=/bin", "ATOLL_PARITY="}
	cfg, err := parse(t, file, environ, []string{"--name=of-flag"})
	if err != nil {
		t.Fatal(err)
	}
	want := node.DefaultConfig()
	want.Name, want.Zone, want.Parity, want.Registry.Listen = "of-flag", "of-environment", 1, "of-file:1"
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("configuration is\n%+v, want\n%+v", cfg, want)
	}
}

// Every setting can be given in each of the three ways, and arrives in its field.
func TestConfigReachesEveryField(t *testing.T) {
	values := map[settingKind]struct {
		text string
		want any
	}{
		kindText:     {"some text", "some text"},
		kindList:     {"a:1,b:2", []string{"a:1", "b:2"}},
		kindBool:     {"true", true},
		kindNumber:   {"3", 3},
		kindBytes:    {"1.5MiB", 1572864},
		kindDuration: {"90s", 90 * time.Second},
		kindIssuers:  {`[{"issuer":"https://x","groups-claim":"g"}]`, []node.IssuerConfig{{Issuer: "https://x", GroupsClaim: "g"}}},
	}
	for _, s := range settings() {
		t.Run(s.key, func(t *testing.T) {
			value := values[s.kind]
			yaml := strconv.Quote(value.text)
			for part := range strings.SplitSeq(reverse(s.key), ".") {
				yaml = part + ": " + yaml
				yaml = "{" + yaml + "}"
			}
			for source, given := range map[string]struct {
				file          string
				environ, args []string
			}{
				"file":         {file: yaml},
				"environment":  {environ: []string{s.environment() + "=" + value.text}},
				"command line": {args: []string{"--" + s.flag() + "=" + value.text}},
			} {
				cfg, err := parse(t, given.file, given.environ, append(given.args, "--name=n1"))
				if s.key == "name" {
					cfg, err = parse(t, given.file, given.environ, given.args)
				}
				if err != nil {
					t.Errorf("%s: %v", source, err)
					continue
				}
				got := reflect.ValueOf(configValues(cfg)[s.key])
				if !got.IsValid() || !reflect.DeepEqual(got.Interface(), reflect.ValueOf(value.want).Convert(got.Type()).Interface()) {
					t.Errorf("%s: value is %v, want %v", source, got, value.want)
				}
			}
		})
	}
}

func reverse(key string) string {
	parts := strings.Split(key, ".")
	for i := range len(parts) / 2 {
		parts[i], parts[len(parts)-1-i] = parts[len(parts)-1-i], parts[i]
	}
	return strings.Join(parts, ".")
}

// The table of settings is the same as what node can be told.
func TestSettingsMatchConfig(t *testing.T) {
	known := map[string]bool{}
	for _, s := range settings() {
		if known[s.key] {
			t.Errorf("setting %s is there twice", s.key)
		}
		known[s.key] = true
	}
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			field := typ.Field(i)
			key := prefix + field.Tag.Get("koanf")
			if field.Type.Kind() == reflect.Struct {
				walk(key+".", field.Type)
				continue
			}
			if !known[key] {
				t.Errorf("node.Config has %s (field %s), the settings do not", key, field.Name)
			}
			delete(known, key)
		}
	}
	walk("", reflect.TypeFor[node.Config]())
	for key := range known {
		t.Errorf("setting %s is not in node.Config", key)
	}
}

// Two settings must not share a spelling.
func TestSettingSpellings(t *testing.T) {
	for name, spelling := range map[string]func(setting) string{"flag": setting.flag, "environment": setting.environment} {
		seen := map[string]string{configFlag: "the file", configVariable: "the file"}
		for _, s := range settings() {
			if other, taken := seen[spelling(s)]; taken {
				t.Errorf("%s %s stands for %s and %s", name, spelling(s), other, s.key)
			}
			seen[spelling(s)] = s.key
			if name == "environment" && kubernetesVariable.MatchString(spelling(s)) {
				t.Errorf("%s counts as a variable of Kubernetes", spelling(s))
			}
		}
	}
}

func TestConfigFaults(t *testing.T) {
	tests := []struct {
		name    string
		file    string
		environ []string
		args    []string
		want    []string
	}{
		{name: "unknown key", file: "regsitry: {listen: x}", want: []string{`atoll.yaml: unknown key "regsitry.listen": did you mean "registry.listen"?`}},
		{name: "unknown key, nothing near", file: "colour: red", want: []string{`unknown key "colour"`}},
		{name: "unknown variable", environ: []string{"ATOLL_DATE=x"}, want: []string{`environment: unknown variable "ATOLL_DATE": did you mean "ATOLL_DATA"?`}},
		{name: "unknown flag", args: []string{"--nmae=x"}, want: []string{"unknown flag: --nmae"}},
		{name: "section is a value", file: "limits: 5", want: []string{"limits: 5 is not a section", "limits.uploads"}},
		{name: "value is a section", file: "name: {first: a}", want: []string{`unknown key "name.first"`}},
		{name: "number in file", file: "limits: {uploads: many}", want: []string{`limits.uploads: "many" is not a whole number`}},
		{name: "fraction", file: "parity: 1.5", want: []string{`parity: 1.5 is not a whole number`}},
		{name: "number in environment", environ: []string{"ATOLL_PARITY=x"}, want: []string{`environment: ATOLL_PARITY: "x" is not a whole number`}},
		{name: "number in flag", args: []string{"--parity=x"}, want: []string{`"x" for "--parity"`, "is not a whole number"}},
		{name: "duration without unit", file: "shutdown-timeout: 30", want: []string{"shutdown-timeout: 30 is not a duration, like"}},
		{name: "bytes", file: "capacity: 5 apples", want: []string{`capacity: "5 apples" is not a number of bytes, like`}},
		{name: "negative bytes", file: "capacity: -1", want: []string{"capacity: -1 is not a number of bytes"}},
		{name: "bool", file: "bootstrap: maybe", want: []string{`bootstrap: "maybe" is not true or false`}},
		{name: "list", file: "join: {a: b}", want: []string{`unknown key "join.a"`}},
		{name: "list of numbers", file: "join: [1]", want: []string{"join: [1] is not a list of texts"}},
		{name: "text is a list", file: "zone: [a]", want: []string{"zone: [a] is not a text"}},
		{name: "no value", file: "parity:", want: []string{"parity: it has no value, but needs a whole number"}},
		{name: "no YAML", file: "a: b: c", want: []string{"read configuration file", "atoll.yaml"}},
		{name: "key twice", file: "zone: a\nzone: b", want: []string{"already defined"}},
		{name: "no file", environ: []string{"ATOLL_CONFIG=/nowhere/atoll.yaml"}, want: []string{"/nowhere/atoll.yaml: no such file"}},
		{name: "all of them", file: "colour: red\nparity: x", environ: []string{"ATOLL_COLOUR=red", "ATOLL_PARITY=y"},
			want: []string{`unknown key "colour"`, `parity: "x"`, `unknown variable "ATOLL_COLOUR"`, `ATOLL_PARITY: "y"`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := parse(t, test.file, test.environ, test.args)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want it to say %q", err, want)
				}
			}
		})
	}
}

func TestConfigAccepts(t *testing.T) {
	// Kubernetes sets such variables for a Service named atoll.
	environ := []string{
		"ATOLL_SERVICE_HOST=10.0.0.1", "ATOLL_SERVICE_PORT=5000", "ATOLL_SERVICE_PORT_REGISTRY=5000", "ATOLL_PORT=tcp://10.0.0.1:5000",
		"ATOLL_PORT_5000_TCP=tcp://10.0.0.1:5000", "ATOLL_PORT_5000_TCP_ADDR=10.0.0.1", "ATOLL_CLUSTER_SERVICE_HOST=10.0.0.2",
	}
	cfg, err := parse(t, "# nothing\nregistry:\ncluster: {}\nzone: 1\njoin: [a:1, b:2]\n", environ, []string{"--bootstrap"})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Zone != "1" || !cfg.Bootstrap || !reflect.DeepEqual(cfg.Join, []string{"a:1", "b:2"}) {
		t.Errorf("configuration is %+v", cfg)
	}
	if cfg.Name == "" {
		t.Error("the host's name is not the default name")
	}
	cfg, err = parse(t, "join: [a:1]", nil, []string{"--join=b:2", "--join", "c:3, d:4"})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(cfg.Join, []string{"b:2", "c:3", "d:4"}) {
		t.Errorf("join = %q: flags add up and win over the file", cfg.Join)
	}
}

func TestBytesOf(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1048576": 1 << 20, "64MiB": 64 << 20, "64 MiB": 64 << 20, "1.5TB": 1.5e12, "10GB": 10e9, "7B": 7, "0.5KiB": 512,
		"9223372036854775807": 1<<63 - 1,
	} {
		if got, err := bytesOf(text); err != nil || got != want {
			t.Errorf("bytesOf(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "B", "-1", "1.5", "1/2", "1e3", "0x10", "1_000", "MiB", "10 apples", "9223372036854775808", "9000000TiB", "NaN", "Inf"} {
		if got, err := bytesOf(text); err == nil {
			t.Errorf("bytesOf(%q) = %d, want an error", text, got)
		}
	}
}

func TestSuggestions(t *testing.T) {
	names := []string{"name", "data", "registry.listen", "registry.url", "cluster.listen"}
	for name, want := range map[string]string{
		"nmae": "name", "registry.listn": "registry.listen", "registry-listen": "registry.listen", "cluster.listens": "cluster.listen",
		"x": "", "colour": "", "url": "",
	} {
		err := unknown("key", name, names).Error()
		if want == "" && strings.Contains(err, "did you mean") || want != "" && !strings.Contains(err, `did you mean "`+want+`"`) {
			t.Errorf("unknown(%q) says %q, want the suggestion %q", name, err, want)
		}
	}
}

func TestDistance(t *testing.T) {
	tests := []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}}
	for _, test := range tests {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("distance(%q, %q) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
