package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

// change applies commands in one write transaction. Every write goes through
// put and remove, which keep the seals, the state hash, and what is needed to
// undo a command that turns out to be refused.
type change struct {
	view
	at position
	// now is the time of the command being carried out, in Unix milliseconds, or of an
	// earlier one that was later by its proposer's clock.
	now int64
	// result is the answer to the command being carried out.
	result *proto.Result
	// undo lists what the command being carried out has overwritten.
	undo []overwritten
	// usage is by how much the command being carried out changes what nodes hold.
	usage map[string]usageDifference
	// work is what the entry being carried out has cost so far: one for each write
	// of a record, and one for each KiB of it.
	work int
	// republish tells that what the machine has published is out of date: nodes,
	// cluster id, settings, era, recoveries, authority, policy or token keys.
	republish bool
	// policy is the one that holds for the command being carried out.
	policy *policy.Compiled
}

type overwritten struct {
	bucket bucket
	key    []byte
	value  []byte
	found  bool
}

// refusal is the error of a command that must change nothing. Any other error
// of a command is final for the node.
type refusal struct {
	result *proto.Result
}

func (r *refusal) Error() string {
	return fmt.Sprintf("refused: %v: %s", r.result.GetRefusal(), r.result.GetDetail())
}

// refuse makes a refusal. The detail is for people; it is not part of the state,
// so that its wording may change between versions.
func refuse(why proto.Refusal, format string, args ...any) error {
	return &refusal{&proto.Result{Refusal: why, Detail: fmt.Sprintf(format, args...)}}
}

// invalid refuses a command that makes no sense in any state.
func invalid(format string, args ...any) error {
	return refuse(proto.Refusal_REFUSAL_INVALID, format, args...)
}

// apply carries out one log entry and returns the encoded result.
func (c *change) apply(entry consensus.Entry) ([]byte, error) {
	c.at.logIndex, c.at.term, c.work = entry.Index, entry.Term, 0
	if len(entry.Data) == 0 {
		return nil, nil
	}
	command, err := decodeCommand(entry.Data)
	if err != nil {
		return nil, err
	}
	answer, answered, err := c.answered(command.GetRequestId())
	if err != nil {
		return nil, err
	}
	if answered {
		return bytes.Clone(answer), nil
	}
	result, err := c.carryOut(command)
	if err != nil {
		return nil, err
	}
	if err := c.remember(command.GetRequestId(), result); err != nil {
		return nil, err
	}
	return encode(result)
}

// carryOut runs the command whole or not at all.
func (c *change) carryOut(command *proto.Command) (*proto.Result, error) {
	c.result = &proto.Result{}
	c.undo = c.undo[:0]
	c.usage = map[string]usageDifference{}
	err := c.admit(command)
	if err == nil {
		err = c.setClock(command.GetTimeUnixMs())
	}
	if err == nil {
		err = c.run(command)
	}
	if err == nil {
		err = c.saveUsage()
	}
	if refused := (*refusal)(nil); errors.As(err, &refused) {
		return refused.result, c.rollBack()
	}
	return c.result, err
}

// rollBack undoes what the command has written so far.
func (c *change) rollBack() error {
	steps := slices.Clone(c.undo)
	for _, step := range slices.Backward(steps) {
		var err error
		if step.found {
			err = c.putValue(step.bucket, step.key, step.value)
		} else {
			err = c.remove(step.bucket, step.key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put stores a message.
func (c *change) put(b bucket, key []byte, m pb.Message) error {
	value, err := encode(m)
	if err != nil {
		return err
	}
	return c.putValue(b, key, value)
}

// putValue stores bytes.
func (c *change) putValue(b bucket, key, value []byte) error {
	old, found, err := c.value(b, key)
	if err != nil {
		return err
	}
	if found && bytes.Equal(old, value) {
		return nil
	}
	c.undo = append(c.undo, overwritten{b, key, old, found})
	c.work += 1 + (len(old)+len(value))>>10
	if found {
		c.at.hash.remove(b, key, old)
	}
	c.at.hash.add(b, key, value)
	in := c.tx.Bucket([]byte(b))
	if b == bucketRequests || b == bucketRequestOrder || b == bucketExtentContents {
		in.FillPercent = 1 // What comes is behind what is there: a page that was split would stay half empty.
	}
	if err := in.Put(key, seal(b, key, value)); err != nil {
		return fmt.Errorf("put %q, key %q: %w", b, key, err)
	}
	return nil
}

// remove deletes a record; without one it does nothing.
func (c *change) remove(b bucket, key []byte) error {
	old, found, err := c.value(b, key)
	if err != nil || !found {
		return err
	}
	c.undo = append(c.undo, overwritten{b, key, old, true})
	c.work += 1 + len(old)>>10
	c.at.hash.remove(b, key, old)
	if err := c.tx.Bucket([]byte(b)).Delete(key); err != nil {
		return fmt.Errorf("delete %q, key %q: %w", b, key, err)
	}
	return nil
}

// count changes a counter, which must not fall below zero.
func (c *change) count(b bucket, key string, difference int) error {
	number, err := c.number(b, key)
	if err != nil {
		return err
	}
	sum := int64(number) + int64(difference)
	if sum < 0 {
		return fmt.Errorf("%w: counter %q falls below zero", ErrCorrupt, key)
	}
	return c.putValue(b, []byte(key), binary.BigEndian.AppendUint64(nil, uint64(sum)))
}

// savePosition writes how far the state is, in the same transaction as the
// state. It is no part of the state hash.
func (c *change) savePosition() error {
	key := []byte(keyPosition)
	err := c.tx.Bucket([]byte(bucketMachine)).Put(key, seal(bucketMachine, key, c.at.encode()))
	if err != nil {
		return fmt.Errorf("save position: %w", err)
	}
	return nil
}
