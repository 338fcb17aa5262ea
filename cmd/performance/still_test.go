package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/atollregistry/atoll/cmd/bench"
)

// still is served, but runs nothing.
type still struct {
	at            place
	starts, stops int
}

// newStill has files of data and caches, and another one.
func newStill(t *testing.T) *still {
	t.Helper()
	folder := t.TempDir()
	s := &still{at: place{folder: folder, data: []string{filepath.Join(folder, "data")}, caches: []string{filepath.Join(folder, "cache")}}}
	for _, name := range []string{"data", "cache", "kept"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *still) start(context.Context) error { s.starts++; return nil }
func (s *still) stop() error                 { s.stops++; return nil }
func (s *still) place() *place               { return &s.at }
func (s *still) registry() bench.Registry    { return bench.Registry{} }
