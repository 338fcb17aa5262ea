package metadata

import (
	"sync"
	"testing"
)

// TestRotateKeys: no key is left, also if two operators rotate at once.
func TestRotateKeys(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	for range 2 {
		if err := s.renewTokenKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.renewSigningKey(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	known := func() map[string]bool {
		t.Helper()
		secrets := map[string]bool{}
		for _, key := range s.TokenKeys() {
			secrets[string(key.GetSeed())] = true
		}
		keys, err := s.SigningKeys()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			secrets[string(key.GetSecret())] = true
		}
		return secrets
	}
	before := known()
	if len(before) != 2 {
		t.Fatalf("%d keys to begin with", len(before))
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if err := s.RotateKeys(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	after := known()
	for secret := range before {
		if after[secret] {
			t.Error("an old key is still known")
		}
	}
	if len(s.TokenKeys()) != tokenKeysKept || len(after) != tokenKeysKept+signingKeysKept {
		t.Errorf("%d keys are known", len(after))
	}
}
