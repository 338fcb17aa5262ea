package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/bcrypt"
)

// Htpasswd is a file with users and the bcrypt hashes of their passwords, as
// "htpasswd -B" writes it. It may be changed while it is in use; it should be the same
// on all nodes.
type Htpasswd struct {
	file string
	log  zerolog.Logger
	// users are the hashes by name.
	users atomic.Pointer[map[string][]byte]
	// content is what the file had when it was last looked at; problem is why it could
	// not be used, so that it is logged once. They are Run's.
	content []byte
	problem string
}

// maxHtpasswdCost bounds the work for one login: twice as much with each.
const maxHtpasswdCost = 14

// OpenHtpasswd reads the file. It fails when the file can't be read or has a line
// that can't be used.
func OpenHtpasswd(file string, logger zerolog.Logger) (*Htpasswd, error) {
	h := &Htpasswd{file: file, log: logger}
	if _, err := h.load(); err != nil {
		return nil, err
	}
	return h, nil
}

// Run follows the file until ctx ends. A file that can't be used changes nothing.
func (h *Htpasswd) Run(ctx context.Context) error {
	return every(ctx, certificateInterval, h.refresh)
}

// refresh looks at the file once.
func (h *Htpasswd) refresh() {
	changed, err := h.load()
	switch {
	case err != nil && err.Error() != h.problem:
		h.problem = err.Error()
		h.log.Error().Err(err).Msg("new password file can't be used, the old one stays")
	case err == nil:
		h.problem = ""
	}
	if changed {
		h.log.Info().Str("file", h.file).Int("users", len(*h.users.Load())).Msg("password file replaced")
	}
}

func (h *Htpasswd) load() (changed bool, err error) {
	content, err := readBounded(h.file)
	if err != nil {
		return false, fmt.Errorf("read password file: %w", err)
	}
	if h.content != nil && bytes.Equal(content, h.content) {
		return false, nil
	}
	users, err := parseHtpasswd(content)
	if err != nil {
		return false, fmt.Errorf("use password file %s: %w", h.file, err)
	}
	h.content = content
	h.users.Store(&users)
	return true, nil
}

// parseHtpasswd reads lines of NAME:HASH. No error has a hash in it.
func parseHtpasswd(content []byte) (map[string][]byte, error) {
	users := make(map[string][]byte)
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, found := strings.Cut(line, ":")
		if !found || name == "" || len(name) > maxNameBytes {
			return nil, fmt.Errorf("line %d is not NAME:HASH", number)
		}
		if _, twice := users[name]; twice {
			return nil, fmt.Errorf("line %d: user %q is there twice", number, name)
		}
		cost, err := bcrypt.Cost([]byte(hash))
		if err != nil {
			return nil, fmt.Errorf("line %d: the hash of user %q is not bcrypt, make it with htpasswd -B", number, name)
		}
		if cost > maxHtpasswdCost {
			return nil, fmt.Errorf("line %d: the hash of user %q has cost %d, more than %d", number, name, cost, maxHtpasswdCost)
		}
		users[name] = []byte(hash)
	}
	return users, nil
}

// hash returns a user's hash; nil for no such user. There may be no file: h is nil then.
func (h *Htpasswd) hash(name string) []byte {
	if h == nil {
		return nil
	}
	return (*h.users.Load())[name]
}

// maxCost returns bcrypt's cost of the costliest hash; 0 without users.
func (h *Htpasswd) maxCost() (highest int) {
	if h == nil {
		return 0
	}
	for _, hash := range *h.users.Load() {
		cost, _ := bcrypt.Cost(hash) // parseHtpasswd has looked at it.
		highest = max(highest, cost)
	}
	return highest
}

// generationOf makes a number of a hash that changes with it.
func generationOf(hash []byte) uint64 {
	sum := sha256.Sum256(hash)
	return binary.BigEndian.Uint64(sum[:])
}
