package metadata

import (
	"bytes"
	"sync/atomic"

	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

// access is what every request needs to know who may do what, published by the machine
// after each commit that changes it, and after a restore.
type access struct {
	policy atomic.Pointer[policy.Compiled]
	// tokenKeys are secret; the newest is the first.
	tokenKeys atomic.Pointer[[]*proto.TokenKey]
	// compiled is the record that policy was compiled from: nodes and settings change
	// more often than it does. Only publish uses it, which never overlaps with itself.
	compiled []byte
}

func (a *access) publish(v view) error {
	keys, err := v.tokenKeys()
	if err != nil {
		return err
	}
	record, _, err := v.value(bucketCluster, []byte(keyPolicy))
	if err != nil {
		return err
	}
	if a.policy.Load() == nil || !bytes.Equal(record, a.compiled) {
		current, err := v.currentPolicy()
		if err != nil {
			return err
		}
		a.policy.Store(policy.Compile(current))
		a.compiled = bytes.Clone(record)
	}
	a.tokenKeys.Store(&keys)
	return nil
}
