package metadata

import (
	"encoding/binary"
	"fmt"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// A command whose outcome is unknown is proposed again, and both copies may
// reach the log. The state machine keeps the answer to each request id and gives
// it to later copies (Raft thesis sec. 6.3, with ids in place of sessions).
//
// Answers are kept for a number of log entries, not for a time: the proposers'
// clocks may disagree by more than any time worth keeping them. A command names
// the last log index at which it may be carried out, so a copy that comes after
// its answer was dropped is refused. Together: at most once, on any clock.

const (
	requestIDBytes = 16
	// requestWindow is for how many log entries an answer is kept. At 7,000
	// entries a second, which is all that the log can do, that is 18 s, more than
	// a writer's time for retries.
	requestWindow = 1 << 17
	// requestDrops bounds how many answers are dropped with one command. Each
	// command adds one, so the front is always caught up with.
	requestDrops = 4
	// requestDigests is how many missing references a kept answer names: enough to
	// go on with. A client can be missing thousands, again and again.
	requestDigests = 8
)

// answered returns the first answer to a request.
func (c *change) answered(id []byte) (answer []byte, found bool, err error) {
	if len(id) != requestIDBytes {
		return nil, false, nil
	}
	return c.value(bucketRequests, id)
}

// remember keeps the answer to a request, and drops answers behind the window.
func (c *change) remember(id []byte, result *proto.Result) error {
	if len(id) != requestIDBytes || result.GetRefusal() == proto.Refusal_REFUSAL_EXPIRED {
		return nil
	}
	kept := pb.Clone(result).(*proto.Result)
	kept.Detail = "" // its wording may differ between versions, the state may not
	if len(kept.GetDigests()) > requestDigests {
		kept.Digests = kept.GetDigests()[:requestDigests]
	}
	if err := c.put(bucketRequests, id, kept); err != nil {
		return err
	}
	order := binary.BigEndian.AppendUint64(nil, c.at.logIndex)
	if err := c.putValue(bucketRequestOrder, order, id); err != nil {
		return err
	}
	return c.dropRequests()
}

func (c *change) dropRequests() error {
	type request struct{ order, id []byte }
	var old []request
	err := c.scan(bucketRequestOrder, span{}, func(order, id []byte) error {
		if len(order) != 8 {
			return fmt.Errorf("%w: bucket %q: key of %d bytes", ErrCorrupt, bucketRequestOrder, len(order))
		}
		if binary.BigEndian.Uint64(order)+requestWindow >= c.at.logIndex || len(old) == requestDrops {
			return errStop
		}
		old = append(old, request{order, id})
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range old {
		if err := c.remove(bucketRequestOrder, r.order); err != nil {
			return err
		}
		if err := c.remove(bucketRequests, r.id); err != nil {
			return err
		}
	}
	return nil
}
