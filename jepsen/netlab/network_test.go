//go:build linux

package netlab

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestHostsReachEachOther(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2", "n3")
	for i, want := range []string{"10.77.0.1", "10.77.0.2", "10.77.0.3"} {
		if got := hosts[i].Address().String(); got != want {
			t.Errorf("address of %s is %s, want %s", hosts[i].Name(), got, want)
		}
	}
	for _, to := range hosts {
		address := serve(t, to, func(conn net.Conn) {
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			_, _ = io.WriteString(conn, host)
		})
		for _, from := range hosts {
			conn := dial(t, from, address)
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != from.Address().String() {
				t.Errorf("%s dialled %s and was seen as %q, %v", from.Name(), to.Name(), got, err)
			}
		}
	}
	counters := network.Counters()
	if len(counters) != 6 {
		t.Errorf("%d directions between three hosts", len(counters))
	}
	for pair, c := range counters {
		if c.Forwarded == 0 || c.ForwardedBytes == 0 || c.Dropped+c.Delayed+c.Duplicated != 0 {
			t.Errorf("%s: %+v", pair, c)
		}
	}
	if network.Host("n2") != hosts[1] || network.Host("n9") != nil {
		t.Error("hosts are not found by their names")
	}
}

// Whatever the links do, TCP brings all bytes in their order, and links may change meanwhile.
func TestStreamOverBadLinks(t *testing.T) {
	network, hosts := newNetwork(t, "n1", "n2")
	conn := dial(t, hosts[0], serve(t, hosts[1], echo))
	random := rand.New(rand.NewPCG(7, 7))
	sent := make([]byte, 2<<20)
	for i := range sent {
		sent[i] = byte(random.Uint32())
	}
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		written <- err
	}()
	links := []Link{
		{Loss: 0.02}, {Duplicate: 0.2}, {Jitter: 2 * time.Millisecond, Delay: time.Millisecond}, {BytesPerSecond: 50 << 20},
		{Loss: 0.01, Duplicate: 0.1, Jitter: time.Millisecond, BytesPerSecond: 20 << 20}, {},
	}
	got := make([]byte, len(sent))
	for left, step := got, 0; len(left) > 0; step++ {
		setLink(t, network, "n1", "n2", links[step%len(links)])
		setLink(t, network, "n2", "n1", links[(step/2)%len(links)])
		n, err := conn.Read(left[:min(len(left), 64<<10)])
		if err != nil {
			t.Fatal(err)
		}
		left = left[n:]
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("other bytes came back")
	}
}

func TestNewRefusesSubnets(t *testing.T) {
	for _, subnet := range []string{"10.77.0.0/16", "10.77.0.0/25", "fd00::/24"} {
		if network, err := New(netip.MustParsePrefix(subnet), 1); err == nil {
			t.Errorf("%s was accepted", subnet)
			network.Close()
		}
	}
	if _, err := New(netip.Prefix{}, 1); err == nil {
		t.Error("no subnet was accepted")
	}
}

func TestAddRefusesNames(t *testing.T) {
	network, _ := newNetwork(t, "n1")
	if _, err := network.Add("n1"); err == nil {
		t.Error("a second n1 was accepted")
	}
}

func TestCloseEndsAll(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	network, hosts := newNetwork(t, "n1", "n2")
	way := newDatagrams(t, hosts[0], hosts[1])
	setLink(t, network, "n1", "n2", Link{Delay: maxDelay})
	way.send(t, 1, 100)
	eventually(t, "a packet under way", func() bool { return network.Counters()[there].Delayed == 1 })
	way.from.Close()
	way.to.Close()
	namespaces := []string{namespaceOf(t, hosts[0]), namespaceOf(t, hosts[1])}
	for _, namespace := range namespaces {
		if len(holders(t, namespace)) == 0 {
			t.Errorf("nothing holds %s before Close", namespace)
		}
	}

	for range 2 {
		if err := network.Close(); err != nil {
			t.Fatal(err)
		}
	}
	goleak.VerifyNone(t, ignore)
	for _, namespace := range namespaces {
		eventually(t, "nothing holds "+namespace, func() bool { return len(holders(t, namespace)) == 0 })
	}
	if _, err := network.Add("n3"); !errors.Is(err, ErrClosed) {
		t.Errorf("Add after Close: %v", err)
	}
	if err := hosts[0].Do(func() error { t.Error("was called"); return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
	if _, err := hosts[0].DialContext(t.Context(), "tcp", "10.77.0.2:1"); !errors.Is(err, ErrClosed) {
		t.Errorf("DialContext after Close: %v", err)
	}
}

// A network that lost a host in an unwanted way says so.
func TestCloseTellsOfLostHosts(t *testing.T) {
	requireRoot(t)
	network, err := New(netip.MustParsePrefix("10.78.0.0/24"), 1)
	if err != nil {
		t.Fatal(err)
	}
	host, err := network.Add("n1")
	if err != nil {
		t.Fatal(err)
	}
	host.device.stop() // as if the device had gone
	eventually(t, "the reader ended", func() bool {
		network.mu.Lock()
		defer network.mu.Unlock()
		return len(network.failed) > 0
	})
	if err := network.Close(); err == nil {
		t.Error("Close told nothing")
	}
}
