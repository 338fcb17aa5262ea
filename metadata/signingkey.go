package metadata

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/proto"
)

const (
	// signingKeyBytes is the length of a secret: as many as HMAC-SHA256 has use for.
	signingKeyBytes = 32
	// signingKeysKept is how many keys are known at a time. A signature lives for
	// minutes, so that two would do if all clocks were right.
	signingKeysKept = 3
	// signingKeyAge is how old the newest key gets before another follows.
	signingKeyAge = 30 * 24 * time.Hour
)

// putSigningKey adds the key that follows the newest one.
func (c *change) putSigningKey(command *proto.PutSigningKey) error {
	key := command.GetKey()
	if len(key.GetSecret()) != signingKeyBytes {
		return invalid("signing key has %d bytes", len(key.GetSecret()))
	}
	keys, err := c.signingKeys()
	if err != nil {
		return err
	}
	newest := uint32(0)
	if len(keys) > 0 {
		newest = keys[0].GetId()
	}
	if key.GetId() != newest+1 {
		return refuse(proto.Refusal_REFUSAL_KEY_KNOWN, "key %d, the newest is %d", key.GetId(), newest)
	}
	for len(keys) >= signingKeysKept {
		oldest := keys[len(keys)-1]
		if err := c.remove(bucketSigningKeys, signingKeyKey(oldest.GetId())); err != nil {
			return err
		}
		keys = keys[:len(keys)-1]
	}
	return c.put(bucketSigningKeys, signingKeyKey(key.GetId()), &proto.SigningKey{
		Id: key.GetId(), Secret: key.GetSecret(), CreatedUnixMs: c.now,
	})
}

func signingKeyKey(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id) }

// signingKeys returns the keys, the newest first.
func (v view) signingKeys() (keys []*proto.SigningKey, err error) {
	err = v.scan(bucketSigningKeys, span{}, func(id, value []byte) error {
		key := &proto.SigningKey{}
		if err := decode(bucketSigningKeys, id, value, key); err != nil {
			return err
		}
		keys = append([]*proto.SigningKey{key}, keys...)
		return nil
	})
	return keys, err
}

// SigningKeys returns the keys that this node knows, the newest first. It does
// not ask the cluster: for a key that is not among them, call CatchUp and look
// again. Errors: ErrCorrupt, ErrClosed.
func (s *Store) SigningKeys() (keys []*proto.SigningKey, err error) {
	err = s.machine.view(func(v view) error {
		keys, err = v.signingKeys()
		return err
	})
	return keys, err
}

// renewSigningKey makes a signing key if there is none, or the newest is old.
func (s *Store) renewSigningKey(ctx context.Context) error {
	keys, err := s.SigningKeys()
	if err != nil {
		return err
	}
	if len(keys) > 0 && s.cfg.Now().Sub(time.UnixMilli(keys[0].GetCreatedUnixMs())) < signingKeyAge {
		return nil
	}
	return s.addSigningKey(ctx)
}

// addSigningKey makes the key that follows the newest one, unless somebody else does.
func (s *Store) addSigningKey(ctx context.Context) error {
	keys, err := s.SigningKeys()
	if err != nil {
		return err
	}
	next := &proto.SigningKey{Id: 1, Secret: make([]byte, signingKeyBytes)}
	if len(keys) > 0 {
		next.Id = keys[0].GetId() + 1
	}
	_, _ = rand.Read(next.Secret) // Never fails: see its documentation.
	_, err = s.propose(ctx, &proto.Command{Body: &proto.Command_PutSigningKey{PutSigningKey: &proto.PutSigningKey{Key: next}}})
	if err != nil && !errors.Is(err, errKeyKnown) {
		return fmt.Errorf("make signing key %d: %w", next.GetId(), err)
	}
	return nil
}
