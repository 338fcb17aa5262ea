// Package netlab is a small network inside one process: hosts are network namespaces, and a
// switch in user space carries the packets between them and loses, delays or repeats them
// when told to. It needs root, Linux and /dev/net/tun, and no other tool. Nothing of it
// outlives the process, however that ends: namespaces have no names, and the devices in
// them belong to open files.
package netlab

import (
	"errors"
	"fmt"
	"time"
)

// ErrClosed says that the network was closed.
var ErrClosed = errors.New("the network is closed")

// Pair is one direction between two hosts, by their names.
type Pair struct {
	From, To string
}

// String returns the pair for people.
func (p Pair) String() string { return p.From + " to " + p.To }

// Link is what happens to the packets of one direction. The zero Link is perfect.
type Link struct {
	// Cut drops every packet, those that are under way included.
	Cut bool
	// Loss is the share of packets that get lost, 0 to 1.
	Loss float64
	// Duplicate is the share of packets that arrive twice, 0 to 1.
	Duplicate float64
	// Delay is how long a packet takes. Packets that are under way keep the delay of the
	// link that they were sent on.
	Delay time.Duration
	// Jitter is added to Delay, for each packet an evenly drawn part of it. So packets overtake
	// one another.
	Jitter time.Duration
	// BytesPerSecond is the bandwidth, 0 if unbounded. Packets wait in a queue of
	// queueTime, or of queuePackets if that is longer; those that find it full are lost.
	BytesPerSecond int64
}

// check says what is wrong with a link.
func (l Link) check() error {
	switch {
	case !(l.Loss >= 0 && l.Loss <= 1): // so that NaN is wrong too
		return fmt.Errorf("loss %v is not between 0 and 1", l.Loss)
	case !(l.Duplicate >= 0 && l.Duplicate <= 1):
		return fmt.Errorf("duplicate %v is not between 0 and 1", l.Duplicate)
	case l.Delay < 0 || l.Jitter < 0:
		return fmt.Errorf("delay %s or jitter %s is negative", l.Delay, l.Jitter)
	case l.Delay > maxDelay || l.Jitter > maxDelay:
		return fmt.Errorf("delay %s or jitter %s is above %s", l.Delay, l.Jitter, maxDelay)
	case l.BytesPerSecond < 0:
		return fmt.Errorf("bandwidth of %d bytes per second is negative", l.BytesPerSecond)
	}
	return nil
}

// Counters count the packets of one direction since its hosts exist. A packet is counted as
// forwarded or as dropped right after that has happened, so those under way are in neither,
// and who has received a packet may not find it here for a moment.
type Counters struct {
	Forwarded, ForwardedBytes int64
	Dropped, DroppedBytes     int64
	// Delayed packets were held back for some time; they are counted when that begins.
	Delayed int64
	// Duplicated packets were sent twice.
	Duplicated int64
}
