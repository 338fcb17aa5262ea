package blobstore

import (
	"errors"
	"strings"
	"testing"
)

func TestDefaultConfigIsValid(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Dir = "shards"
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigNamesEveryFault(t *testing.T) {
	var empty Config
	err := empty.Validate()
	if !errors.Is(err, ErrInvalid) {
		t.Fatalf("got %v, want ErrInvalid", err)
	}
	for _, field := range []string{"Dir", "CellBytes", "MaxDataShards", "BufferBytes", "HedgeDelay", "LateDelay", "StallTimeout", "ReadTimeout", "MaxShardWriters", "MaxShardReads", "MaxOpenShards", "SweepInterval"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not among the faults:\n%v", field, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"CellBytes":             func(c *Config) { c.CellBytes = MaxCellBytes + 1 },
		"SmallBlobBytes":        func(c *Config) { c.SmallBlobBytes = c.CellBytes + 1 },
		"InlineBlobBytes 9":     func(c *Config) { c.SmallBlobBytes, c.InlineBlobBytes = 8, 9 },
		"InlineBlobBytes 32768": func(c *Config) { c.InlineBlobBytes = intakeBytes },
		"InlineBlobBytes 4096":  func(c *Config) { c.CellBytes, c.SmallBlobBytes, c.InlineBlobBytes = 4096, 4096, 4096 },
		"InlineBlobBytes -1":    func(c *Config) { c.InlineBlobBytes = -1 },
		"MaxExtentBytes":        func(c *Config) { c.CellBytes = 1 },
		"MaxDataShards":         func(c *Config) { c.MaxDataShards = MaxDataShards + 1 },
		"Parity":                func(c *Config) { c.Parity = -2 },
		"SweepGrace":            func(c *Config) { c.SweepGrace = -1 },
	} {
		cfg := DefaultConfig()
		cfg.Dir = "shards"
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
