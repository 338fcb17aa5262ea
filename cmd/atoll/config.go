package main

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/atollregistry/atoll/node"
)

const (
	environmentPrefix = "ATOLL_"
	// configVariable and configFlag name the configuration file, which for that
	// reason can't be set in the file itself.
	configVariable = environmentPrefix + "CONFIG"
	configFlag     = "config"
)

// kubernetesVariable matches what Kubernetes sets in every container of a
// namespace that has a Service named atoll (or atoll-something). They are not
// meant for us, and must not count as unknown settings.
var kubernetesVariable = regexp.MustCompile(`^ATOLL_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)$`)

// addSettingFlags gives a command one flag for every setting, and one for the
// configuration file.
func addSettingFlags(flags *pflag.FlagSet) {
	flags.String(configFlag, "", "configuration file, YAML (environment: "+configVariable+")")
	defaults := configValues(node.DefaultConfig())
	for _, s := range settings() {
		usage := s.usage
		if value := defaults[s.key]; value != nil {
			usage += " (default " + s.kind.format(value) + ")"
		}
		flag := flags.VarPF(&settingValue{kind: s.kind}, s.flag(), "", usage)
		if s.kind == kindBool {
			flag.NoOptDefVal = "true"
		}
	}
}

// settingValue is a flag that is checked when it is read.
type settingValue struct {
	kind settingKind
	text string
}

// String returns the flag as it was given.
func (v *settingValue) String() string { return v.text }

// Type is what help calls the value.
func (v *settingValue) Type() string { return v.kind.String() }

// Set checks the value. A list may be given in several flags.
func (v *settingValue) Set(text string) error {
	if _, err := v.kind.parse(text); err != nil {
		return err
	}
	if v.kind == kindList && v.text != "" {
		text = v.text + "," + text
	}
	v.text = text
	return nil
}

// loadConfig puts the configuration together: flags win over the environment,
// the environment over the file, the file over the defaults. It returns all
// faults, joined; whether values make sense together is up to node.New.
func loadConfig(flags *pflag.FlagSet, environ []string) (node.Config, error) {
	cfg := node.DefaultConfig()
	merged := koanf.New(".")
	var faults []error
	for _, read := range []func() (layer, error){
		func() (layer, error) { return fileLayer(flags, environ) },
		func() (layer, error) { return environmentLayer(environ) },
		func() (layer, error) { return flagLayer(flags) },
	} {
		layer, err := read()
		faults = append(faults, err)
		if layer.values != nil {
			faults = append(faults, layer.mergeInto(merged))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return cfg, err
	}
	if err := merged.Unmarshal("", &cfg); err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if cfg.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return cfg, fmt.Errorf("name: none given, and the host has none: %w", err)
		}
		cfg.Name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	return cfg, nil
}

// layer is one source of configuration.
type layer struct {
	// source is its name in error messages, and spelling how it writes a key.
	source   string
	spelling func(key string) string
	values   *koanf.Koanf
}

// mergeInto checks the layer's keys and values and puts them over what is there.
func (l layer) mergeInto(merged *koanf.Koanf) error {
	var faults []error
	for _, key := range l.values.Keys() {
		value := l.values.Get(key)
		kind, err := l.kindOf(key, value)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", l.source, err))
			continue
		}
		if kind == 0 {
			continue // an empty section
		}
		value, err = kind.parse(value)
		if err == nil {
			err = merged.Set(key, value)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %s: %w", l.source, l.spelling(key), err))
		}
	}
	return errors.Join(faults...)
}

// kindOf looks a key up. A section without keys has kind 0.
func (l layer) kindOf(key string, value any) (settingKind, error) {
	var keys []string
	for _, s := range settings() {
		if s.key == key {
			return s.kind, nil
		}
		if strings.HasPrefix(s.key, key+".") {
			keys = append(keys, s.key)
		}
	}
	if len(keys) == 0 {
		return 0, unknown("key", key, settingNames(func(s setting) string { return s.key }))
	}
	if value == nil || reflect.ValueOf(value).Kind() == reflect.Map {
		return 0, nil
	}
	return 0, fmt.Errorf("%s: %v is not a section with some of the keys %s", key, value, strings.Join(keys, ", "))
}

func fileLayer(flags *pflag.FlagSet, environ []string) (layer, error) {
	values := koanf.New(".")
	path, err := flags.GetString(configFlag)
	if err != nil {
		return layer{}, err
	}
	if path == "" {
		path = lookup(environ, configVariable)
	}
	if path != "" {
		if err := values.Load(file.Provider(path), yaml.Parser()); err != nil {
			return layer{}, fmt.Errorf("read configuration file %s: %w", path, err)
		}
	}
	return layer{path, func(key string) string { return key }, values}, nil
}

// environmentLayer reads the ATOLL_ variables. An empty one counts as not set,
// as it comes from a line like ATOLL_ZONE=${ZONE} in a compose file.
func environmentLayer(environ []string) (layer, error) {
	values := koanf.New(".")
	keys := map[string]string{}
	variables := map[string]string{}
	for _, s := range settings() {
		keys[s.environment()] = s.key
		variables[s.key] = s.environment()
	}
	var faults []error
	provider := env.Provider(".", env.Opt{
		Prefix:      environmentPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(variable, value string) (string, any) {
			key, known := keys[variable]
			switch {
			case known && value != "":
				return key, value
			case known || variable == configVariable || kubernetesVariable.MatchString(variable):
				return "", nil
			}
			names := append(settingNames(setting.environment), configVariable)
			faults = append(faults, fmt.Errorf("environment: %w", unknown("variable", variable, names)))
			return "", nil
		},
	})
	if err := values.Load(provider, nil); err != nil {
		return layer{}, fmt.Errorf("read environment: %w", err)
	}
	return layer{"environment", func(key string) string { return variables[key] }, values}, errors.Join(faults...)
}

func flagLayer(flags *pflag.FlagSet) (layer, error) {
	values := koanf.New(".")
	keys := map[string]string{}
	for _, s := range settings() {
		keys[s.flag()] = s.key
	}
	provider := posflag.ProviderWithFlag(flags, ".", nil, func(f *pflag.Flag) (string, any) {
		return keys[f.Name], f.Value.String()
	})
	if err := values.Load(provider, nil); err != nil {
		return layer{}, fmt.Errorf("read flags: %w", err)
	}
	return layer{"command line", func(key string) string { return "--" + strings.ReplaceAll(key, ".", "-") }, values}, nil
}

// suggestFlag completes the message for a flag that does not exist.
func suggestFlag(cmd *cobra.Command, err error) error {
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) || len(missing.GetSpecifiedName()) < 2 {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return unknown("flag", "--"+missing.GetSpecifiedName(), names)
}

func settingNames(spelling func(setting) string) []string {
	var names []string
	for _, s := range settings() {
		names = append(names, spelling(s))
	}
	return names
}

func lookup(environ []string, variable string) string {
	for _, entry := range slices.Backward(environ) {
		if value, ok := strings.CutPrefix(entry, variable+"="); ok {
			return value
		}
	}
	return ""
}

// configValues lists the values of a configuration that are not zero, by key.
func configValues(cfg node.Config) map[string]any {
	values := map[string]any{}
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			key := prefix + v.Type().Field(i).Tag.Get("koanf")
			if field := v.Field(i); field.Kind() == reflect.Struct {
				walk(key+".", field)
			} else if !field.IsZero() {
				values[key] = field.Interface()
			}
		}
	}
	walk("", reflect.ValueOf(cfg))
	return values
}
