package metadata

import (
	"context"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

// putPolicy changes the policy, unless somebody else has meanwhile.
func (c *change) putPolicy(command *proto.PutPolicy) error {
	if err := policy.Check(command.GetPolicy()); err != nil {
		return invalid("policy: %v", err)
	}
	current, err := c.currentPolicy()
	if err != nil {
		return err
	}
	if current.GetRevision() != command.GetPreviousRevision() {
		return refuse(proto.Refusal_REFUSAL_CHANGED, "the policy is at revision %d, not %d", current.GetRevision(), command.GetPreviousRevision())
	}
	next := pb.Clone(command.GetPolicy()).(*proto.Policy)
	next.Revision = current.GetRevision() + 1
	next.UpdatedUnixMs = c.now
	if err := c.put(bucketCluster, []byte(keyPolicy), next); err != nil {
		return err
	}
	// From the next command on. Nothing behind this refuses the command.
	c.policy = policy.Compile(next)
	c.republish = true
	return nil
}

// currentPolicy returns the policy, the default one if nobody has changed it yet.
func (v view) currentPolicy() (*proto.Policy, error) {
	current := &proto.Policy{}
	found, err := v.record(bucketCluster, []byte(keyPolicy), current)
	if err == nil && !found {
		current = policy.Default()
	}
	return current, err
}

// Policy returns the cluster's policy. Error: ErrUnavailable.
func (s *Store) Policy(ctx context.Context) (current *proto.Policy, err error) {
	err = s.read(ctx, func(v view) error {
		current, err = v.currentPolicy()
		return err
	})
	return current, err
}

// LocalPolicy returns the cluster's policy as this node knows it, ready to be asked,
// without waiting for anybody. It is never nil.
func (s *Store) LocalPolicy() *policy.Compiled { return s.machine.access.policy.Load() }

// PutPolicy puts a policy in the place of the one of the revision that the caller has
// seen. Errors: ErrChanged, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) PutPolicy(ctx context.Context, previousRevision uint64, next *proto.Policy) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutPolicy{PutPolicy: &proto.PutPolicy{
		Policy: next, PreviousRevision: previousRevision,
	}}})
	return err
}
