package consensus

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A voter whose disk is gone answers at its old address under a new id. Its vote
// would make a leader of a node that lacks what the lost one acknowledged.
func TestWipedVoterHasNoVote(t *testing.T) {
	c := form(t, 3, nil)
	leader := c.leader()
	lagging, wiped := c.followers()[0], c.followers()[1]
	c.propose(leader, "add base")
	c.agree()
	c.network.partition([]string{"n1", "n2", "n3"}, []string{leader.id, wiped.id}, []string{lagging.id})
	c.propose(leader, "add acknowledged")
	leader.kill()
	wiped.kill()
	c.nodes["fresh"] = &testNode{id: "fresh", address: wiped.address}
	delete(c.nodes, wiped.id)
	c.start("fresh")
	c.network.heal()

	to := nodeAt(raft.ServerID(wiped.id), raft.ServerAddress(wiped.address))
	id, address := wiped.id, wiped.address
	eventually(t, "the fresh node says that it is not the wiped one", func() bool {
		conn, err := lagging.streams.dialNode(id, address, time.Second)
		if err == nil {
			conn.Close()
			t.Fatalf("%s took the fresh node for %s", lagging.id, to)
		}
		return errors.Is(err, errOtherNode)
	})
	// Time for several elections: nobody may win one.
	elections, tick := time.After(10*lagging.cfg.HeartbeatTimeout), time.NewTicker(lagging.cfg.HeartbeatTimeout/10)
	defer tick.Stop()
	for waiting := true; waiting; {
		if lagging.IsLeader() {
			t.Fatal("a node without the acknowledged write leads")
		}
		select {
		case <-tick.C:
		case <-elections:
			waiting = false
		}
	}
	leader = c.start(leader.id)
	eventually(t, "the write is there once the node that has it is back", func() bool {
		return lagging.machine.count("acknowledged") == 1 && lagging.Replica.Status().LeaderID == leader.id
	})
}

// Whoever says nothing, or rubbish, holds up nobody and gets nothing.
func TestGreetings(t *testing.T) {
	c := form(t, 1, nil)
	n := c.leader()
	for _, sent := range []string{"", "\x00", "\x02n2", "\xffshort", "\x00\x00\x00\x00"} {
		conn, err := net.Dial("tcp", n.address)
		if err != nil {
			t.Fatal(err)
		}
		// The node may have heard enough and hung up before all is sent.
		_, _ = conn.Write([]byte(sent))
		_ = conn.(*net.TCPConn).CloseWrite()
		if err := conn.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
			t.Fatal(err)
		}
		var answer [2]byte
		for got := 0; ; {
			read, err := conn.Read(answer[:])
			if got += read; got > 0 && answer[0] == greetingYes {
				t.Errorf("%q was answered with %q", sent, answer[:got])
			}
			if err != nil {
				break
			}
		}
		conn.Close()
	}
	conn, err := n.streams.dialNode(n.id, n.address, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// What is not known must not become "no" on its way between nodes.
func TestUnknownOutcomeStaysUnknown(t *testing.T) {
	for _, beside := range []error{ErrClosed, ErrNotLeader, ErrNoLeader, errors.New("other")} {
		err := fromStatus(toStatus(fmt.Errorf("%w: %w", ErrOutcomeUnknown, beside)))
		if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrNotLeader) {
			t.Errorf("with %v: %v", beside, err)
		}
	}
	for _, certain := range []error{ErrClosed, ErrNotLeader, ErrNoLeader} {
		if err := fromStatus(toStatus(certain)); !errors.Is(err, ErrNotLeader) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%v becomes %v", certain, err)
		}
	}
}

func TestEmptyLogOfAMember(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.MustHaveState = true })
	if _, err := c.open("n1"); !errors.Is(err, ErrLogLost) {
		t.Errorf("error is %v", err)
	}
}

// Who says that he is a node must be that node, on both ends of a connection.
func TestImpostorsAreRefused(t *testing.T) {
	errImposed := errors.New("imposed")
	c := form(t, 1, func(cfg *Config) {
		cfg.Holds = func(_ net.Conn, id string) error {
			if id == "liar" {
				return errImposed
			}
			return nil
		}
	})
	n := c.leader()
	for caller, want := range map[string]error{"liar": errImpostor, "n2": nil} {
		conn, err := net.Dial("tcp", n.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := askFor(conn, []string{n.id, n.streams.group(), caller}, testTimeout); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", caller, err, want)
		}
		conn.Close()
	}
	if conn, err := n.streams.dialNode("liar", n.address, testTimeout); !errors.Is(err, errImposed) {
		if err == nil {
			conn.Close()
		}
		t.Errorf("dialled the wrong node: %v", err)
	}
}
