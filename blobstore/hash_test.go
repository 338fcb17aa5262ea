package blobstore

import (
	"crypto/sha512"
	"encoding/hex"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// startHashes returns the states of hashes over nothing.
func startHashes() ([]*proto.HashState, error) {
	var hashes runningHashes
	for _, algorithm := range []string{sha256Name, sha512Name} {
		running, err := newHash(algorithm)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, running)
	}
	return hashes.states()
}

func mustHashes(t *testing.T) []*proto.HashState {
	t.Helper()
	states, err := startHashes()
	if err != nil {
		t.Fatal(err)
	}
	return states
}

func sha512Digest(content []byte) string {
	sum := sha512.Sum512(content)
	return "sha512:" + hex.EncodeToString(sum[:])
}

func TestDigestOfNothing(t *testing.T) {
	got, err := Progress{}.Digest("sha256")
	if err != nil || got != sha256Digest(nil) {
		t.Errorf("%s, %v", got, err)
	}
}
