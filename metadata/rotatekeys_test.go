package metadata

import (
	"errors"
	"sync"
	"testing"

	"github.com/atollregistry/atoll/proto"
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
	certificate := &proto.RegistryCertificate{Directory: "d", AccountKey: []byte("old"), Chain: [][]byte{[]byte("c")}, Key: []byte("k")}
	if err := s.PutRegistryCertificate(t.Context(), certificate); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if err := s.RotateKeys(t.Context()); err != nil && !errors.Is(err, ErrChanged) {
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
	if record, err := s.RegistryCertificate(); err != nil || record.GetDirectory() != "" || len(record.GetChain()) != 1 {
		t.Errorf("the registry's certificate is not ordered anew, or gone: %v", err)
	}
	if len(s.TokenKeys()) != tokenKeysKept || len(after) != tokenKeysKept+signingKeysKept {
		t.Errorf("%d keys are known", len(after))
	}
}
