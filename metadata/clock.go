package metadata

import "encoding/binary"

// Ages are differences between the clocks of two nodes: what one has stamped, another
// finds to be over its time. So the state has a clock of its own, the latest time that
// any command has brought: nothing looks older than what was there before it, however
// far behind its proposer's clock is.

// setClock takes the time of a command over into the state's clock, if it is later.
func (c *change) setClock(unixMS int64) error {
	clock, err := c.clock()
	if err != nil {
		return err
	}
	if c.now = max(unixMS, clock); c.now == clock {
		return nil
	}
	return c.putValue(bucketCluster, []byte(keyClock), binary.BigEndian.AppendUint64(nil, uint64(c.now)))
}

// clock returns the latest time that a command has brought, in Unix milliseconds.
func (v view) clock() (int64, error) {
	clock, err := v.number(bucketCluster, keyClock)
	return int64(clock), err
}
