package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/atollregistry/atoll/cmd/bench"
)

// benchEntry is one registry in the file of bench compare.
type benchEntry struct {
	Name         string   `yaml:"name"`
	URLs         []string `yaml:"urls"`
	Static       []string `yaml:"static"`
	PIDs         []string `yaml:"pids"`
	Before       string   `yaml:"before"`
	User         string   `yaml:"user"`
	PasswordFile string   `yaml:"password-file"`
}

// benchRegistries puts together what the flags say, or reads the file.
func benchRegistries(registries, static []string, file string) (all []bench.Registry, err error) {
	if file != "" {
		return readBenchFile(file)
	}
	for _, text := range registries {
		name, urls, err := namedURLs("registry", text)
		if err != nil {
			return nil, err
		}
		all = append(all, bench.Registry{Name: name, URLs: urls})
	}
	for _, text := range static {
		name, urls, err := namedURLs("static", text)
		if err != nil {
			return nil, err
		}
		all = append(all, bench.Registry{Name: name, Static: urls})
	}
	return all, nil
}

// namedURLs reads NAME=URL,...
func namedURLs(flag, text string) (name string, urls []string, err error) {
	name, list, found := strings.Cut(text, "=")
	if !found || name == "" || strings.ContainsAny(name, ":/") {
		return "", nil, fmt.Errorf("--%s: %q is not NAME=URL or NAME=URL,URL", flag, text)
	}
	return name, strings.Split(list, ","), nil
}

func readBenchFile(path string) (all []bench.Registry, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read registries: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	var entries []benchEntry
	if err := decoder.Decode(&entries); err != nil {
		return nil, fmt.Errorf("read registries: %s: %w", path, err)
	}
	for _, e := range entries {
		password, err := benchPassword(e.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", e.Name, err)
		}
		all = append(all, bench.Registry{
			Name: e.Name, URLs: e.URLs, Static: e.Static, Processes: e.PIDs, Before: e.Before, User: e.User, Password: password,
		})
	}
	return all, nil
}
