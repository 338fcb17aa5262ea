package metadata

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// Token keys sign the tokens that clients get when they log in, so that every node can
// tell those that any node has made.

const (
	// tokenKeyAge is how old the newest key gets before another follows.
	tokenKeyAge = 30 * 24 * time.Hour
	// tokenKeysKept is how many keys are known at a time: what the newest one has signed
	// on its last day is known for three ages more.
	tokenKeysKept = 4
	// TokenKeyLife is how long a token may be good at most: then, at the latest, the key
	// that has signed it is forgotten.
	TokenKeyLife = (tokenKeysKept - 1) * tokenKeyAge
)

// putTokenKey adds the key that follows the newest one.
func (c *change) putTokenKey(command *proto.PutTokenKey) error {
	key := command.GetKey()
	if len(key.GetSeed()) != ed25519.SeedSize {
		return invalid("token key has a seed of %d bytes", len(key.GetSeed()))
	}
	keys, err := c.tokenKeys()
	if err != nil {
		return err
	}
	newest := uint32(0)
	if len(keys) > 0 {
		newest = keys[0].GetId()
	}
	if key.GetId() != newest+1 {
		return refuse(proto.Refusal_REFUSAL_KEY_KNOWN, "token key %d, the newest is %d", key.GetId(), newest)
	}
	for len(keys) >= tokenKeysKept {
		oldest := keys[len(keys)-1]
		if err := c.remove(bucketTokenKeys, signingKeyKey(oldest.GetId())); err != nil {
			return err
		}
		keys = keys[:len(keys)-1]
	}
	c.republish = true
	return c.put(bucketTokenKeys, signingKeyKey(key.GetId()), &proto.TokenKey{
		Id: key.GetId(), Seed: key.GetSeed(), CreatedUnixMs: c.now,
	})
}

// tokenKeys returns the keys, the newest first.
func (v view) tokenKeys() (keys []*proto.TokenKey, err error) {
	err = v.scan(bucketTokenKeys, span{}, func(id, value []byte) error {
		key := &proto.TokenKey{}
		if err := decode(bucketTokenKeys, id, value, key); err != nil {
			return err
		}
		keys = append([]*proto.TokenKey{key}, keys...)
		return nil
	})
	return keys, err
}

// TokenKeys returns the keys that this node knows, the newest first; none in the first
// moments of a cluster. It does not ask the cluster: for a key that is not among them,
// call CatchUp and look again. Secret. The messages are shared: they must not be
// changed.
func (s *Store) TokenKeys() []*proto.TokenKey { return *s.machine.access.tokenKeys.Load() }

// renewTokenKey makes a token key if there is none, or the newest is old.
func (s *Store) renewTokenKey(ctx context.Context) error {
	if keys := s.TokenKeys(); len(keys) > 0 && s.cfg.Now().Sub(time.UnixMilli(keys[0].GetCreatedUnixMs())) < tokenKeyAge {
		return nil
	}
	return s.addTokenKey(ctx)
}

// addTokenKey makes the key that follows the newest one, unless somebody else does.
func (s *Store) addTokenKey(ctx context.Context) error {
	next := &proto.TokenKey{Id: 1, Seed: make([]byte, ed25519.SeedSize)}
	if keys := s.TokenKeys(); len(keys) > 0 {
		next.Id = keys[0].GetId() + 1
	}
	_, _ = rand.Read(next.Seed) // Never fails: see its documentation.
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutTokenKey{PutTokenKey: &proto.PutTokenKey{Key: next}}})
	if err != nil && !errors.Is(err, errKeyKnown) {
		return fmt.Errorf("make token key %d: %w", next.GetId(), err)
	}
	return nil
}
