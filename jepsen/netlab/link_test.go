//go:build linux

package netlab

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"
)

// there and back are the directions of a network of two.
var (
	there = Pair{From: "n1", To: "n2"}
	back  = Pair{From: "n2", To: "n1"}
)

func TestCutOneWay(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{Cut: true})
	forth, reply := newDatagrams(t, hosts[0], hosts[1]), newDatagrams(t, hosts[1], hosts[0])
	forth.send(t, 5, 100)
	reply.send(t, 5, 100)
	if got := reply.receive(t, 5); !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
		t.Errorf("the other way brought %v", got)
	}
	eventually(t, "5 packets dropped", func() bool { return network.Counters()[there].Dropped >= 5 })
	eventually(t, "5 packets forwarded", func() bool { return network.Counters()[back].Forwarded == 5 })
	counters := network.Counters()
	if c := counters[there]; c.Forwarded != 0 || c.DroppedBytes < 5*100 {
		t.Errorf("cut way: %+v", c)
	}
	if c := counters[back]; c.Dropped != 0 || c.ForwardedBytes < 5*100 {
		t.Errorf("other way: %+v", c)
	}
}

func TestCutBothWaysAndHeal(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2", "n3")
	address := serve(t, hosts[1], echo)
	before := dial(t, hosts[0], address)
	roundTrip(t, before, []byte("x"))
	setLink(t, network, "n1", "n2", Link{Cut: true})
	setLink(t, network, "n2", "n1", Link{Cut: true})
	if links := network.Links(); len(links) != 2 || !links[there].Cut || !links[back].Cut {
		t.Errorf("links %v", links)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	conn, err := hosts[0].DialContext(ctx, "tcp", address)
	var op *net.OpError
	if err == nil || !errors.As(err, &op) || op.Op != "dial" || !op.Timeout() {
		t.Fatalf("dial over a cut link: %v %v", conn, err)
	}
	roundTrip(t, dial(t, hosts[2], address), []byte("x")) // the third is not concerned
	if dropped := network.Counters()[there].Dropped; dropped == 0 {
		t.Error("nothing was dropped")
	}
	network.Heal()
	if links := network.Links(); len(links) != 0 {
		t.Errorf("links after Heal: %v", links)
	}
	roundTrip(t, dial(t, hosts[0], address), []byte("x"))
	roundTrip(t, before, []byte("x"))
}

func TestCutDropsWhatIsUnderWay(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{Delay: time.Second})
	newDatagrams(t, hosts[0], hosts[1]).send(t, 3, 100)
	eventually(t, "3 packets delayed", func() bool { return network.Counters()[there].Delayed == 3 })
	setLink(t, network, "n1", "n2", Link{Cut: true})
	eventually(t, "3 packets dropped", func() bool { return network.Counters()[there].Dropped == 3 })
	if c := network.Counters()[there]; c.Forwarded != 0 {
		t.Errorf("%+v", c)
	}
}

func TestLoss(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{Loss: 0.25})
	const sent = 2000
	newDatagrams(t, hosts[0], hosts[1]).send(t, sent, 100)
	eventually(t, "all packets counted", func() bool {
		c := network.Counters()[there]
		return c.Forwarded+c.Dropped == sent
	})
	if c := network.Counters()[there]; c.Dropped < sent/5 || c.Dropped > sent*3/10 {
		t.Errorf("of %d packets at a loss of 0.25: %+v", sent, c)
	}
}

func TestDelay(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	conn := dial(t, hosts[0], serve(t, hosts[1], echo))
	const delay = 30 * time.Millisecond
	setLink(t, network, "n1", "n2", Link{Delay: delay})
	setLink(t, network, "n2", "n1", Link{Delay: 2 * delay})
	begin := time.Now()
	roundTrip(t, conn, []byte("x"))
	if took := time.Since(begin); took < 3*delay {
		t.Errorf("a round trip of %s with delays of %s and %s", took, delay, 2*delay)
	}
	if c := network.Counters(); c[there].Delayed == 0 || c[back].Delayed == 0 {
		t.Errorf("%+v", c)
	}
}

func TestDelayKeepsTheOrder(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{Delay: 5 * time.Millisecond})
	way := newDatagrams(t, hosts[0], hosts[1])
	way.send(t, 100, 100)
	if got := way.receive(t, 100); !slices.IsSorted(got) {
		t.Errorf("came as %v", got)
	}
}

func TestJitterReorders(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{Jitter: 100 * time.Millisecond})
	way := newDatagrams(t, hosts[0], hosts[1])
	way.send(t, 100, 100)
	got := way.receive(t, 100)
	if slices.IsSorted(got) {
		t.Error("all packets came in order")
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != 100 {
		t.Errorf("came: %v", got)
	}
}

func TestDuplicate(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{Duplicate: 1})
	way := newDatagrams(t, hosts[0], hosts[1])
	way.send(t, 3, 100)
	if got := way.receive(t, 6); !slices.Equal(got, []int{0, 0, 1, 1, 2, 2}) {
		t.Errorf("came: %v", got)
	}
	eventually(t, "6 packets forwarded", func() bool { return network.Counters()[there].Forwarded == 6 })
	if c := network.Counters()[there]; c.Duplicated != 3 {
		t.Errorf("%+v", c)
	}
}

func TestBandwidth(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	conn := dial(t, hosts[0], serve(t, hosts[1], echo))
	setLink(t, network, "n1", "n2", Link{BytesPerSecond: 1 << 20})
	const size = 256 << 10
	begin := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, size))
		done <- err
	}()
	got := make([]byte, size)
	for left := got; len(left) > 0; {
		n, err := conn.Read(left)
		if err != nil {
			t.Fatal(err)
		}
		left = left[n:]
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < time.Second/4 {
		t.Errorf("a quarter of what one second carries came back after %s", took)
	}
}

func TestFullQueueDrops(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	setLink(t, network, "n1", "n2", Link{BytesPerSecond: 1 << 20})
	const sent = 200 // of 8 KB: more than a second, where the queue has a fifth of one
	newDatagrams(t, hosts[0], hosts[1]).send(t, sent, 8<<10)
	eventually(t, "all packets counted", func() bool {
		c := network.Counters()[there]
		return c.Forwarded+c.Dropped == sent
	})
	if c := network.Counters()[there]; c.Dropped == 0 || c.Forwarded == 0 {
		t.Errorf("%+v", c)
	}
}

func TestBadLinks(t *testing.T) {
	network, _ := newNetwork(t, "n1", "n2")
	nan := 0.0
	nan /= nan
	for _, link := range []Link{
		{Loss: -0.1}, {Loss: 1.1}, {Loss: nan}, {Duplicate: 2}, {Delay: -1}, {Jitter: -1},
		{Delay: maxDelay + 1}, {BytesPerSecond: -1},
	} {
		if err := network.SetLink("n1", "n2", link); err == nil {
			t.Errorf("%+v was accepted", link)
		}
	}
	for _, pair := range []Pair{{"n1", "n3"}, {"n3", "n1"}, {"n1", "n1"}} {
		if err := network.SetLink(pair.From, pair.To, Link{Cut: true}); err == nil {
			t.Errorf("a link from %s was accepted", pair)
		}
	}
	if links := network.Links(); len(links) != 0 {
		t.Errorf("links %v", links)
	}
}
