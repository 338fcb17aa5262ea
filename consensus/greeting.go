package consensus

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

// A connection for Raft's messages begins with the id of the node that is meant, the
// id of the group that the caller belongs to, and the caller's own id, each behind its
// length in one byte. The node answers with greetingYes if the first two are its own and
// the caller is who it says, or else with why not and the end of the connection. The
// caller sees to it that it is the node meant that answers. A node that does not know its
// group yet, since it is new, takes the word of whoever asks for it by its id.
const (
	greetingYes        = 'y'
	greetingOtherNode  = 'n'
	greetingOtherGroup = 'g'
	greetingImpostor   = 'i'
)

// greetingTimeout bounds the wait for a greeting.
const greetingTimeout = 5 * time.Second

var (
	// errOtherNode means that another node than the one meant listens at an address.
	errOtherNode = errors.New("another node answers there: the one meant was replaced or lost its data")
	// errOtherGroup means that the node meant does not belong to the same group.
	errOtherGroup = errors.New("the node there belongs to another group: one of the two was recovered after a loss of quorum, without the other")
	// errImpostor means that this node could not prove who it is.
	errImpostor = errors.New("the node there does not believe that this is the node with this node's id: this one's certificate is another's, or it was removed from the group")
)

// dialNode connects to a node of this node's group, and to no other that listens at
// its address.
func (s *streams) dialNode(id, address string, timeout time.Duration) (conn net.Conn, err error) {
	conn, err = s.network.Dial(address, timeout)
	if err != nil {
		return nil, err
	}
	err = s.holds(conn, id)
	if err == nil {
		err = askFor(conn, []string{id, s.group(), s.id}, timeout)
	}
	if err != nil {
		_ = conn.Close() // the reason is known
		return nil, fmt.Errorf("connect to node %s at %s: %w", id, address, err)
	}
	return conn, nil
}

func askFor(conn net.Conn, texts []string, timeout time.Duration) error {
	var greeting []byte
	for _, text := range texts {
		if len(text) > math.MaxUint8 {
			return fmt.Errorf("an id has %d bytes", len(text))
		}
		greeting = append(append(greeting, byte(len(text))), text...)
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write(greeting); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	switch answer[0] {
	case greetingYes:
		return conn.SetDeadline(time.Time{})
	case greetingOtherGroup:
		return errOtherGroup
	case greetingImpostor:
		return errImpostor
	default:
		return errOtherNode
	}
}

// greet reads who is meant on an incoming connection and answers. An error ends
// the connection.
func (s *streams) greet(conn net.Conn) error {
	texts, err := s.readGreeting(conn)
	meant, group, caller := texts[0], texts[1], texts[2]
	own := s.group()
	switch {
	case err != nil:
		s.log.Debug().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("connection without a greeting")
		return io.EOF // which the library takes for a connection that was not needed
	case own != "" && group != own:
		s.log.Warn().Str("group", group).Str("own", own).Stringer("remote", conn.RemoteAddr()).
			Msg("node of another group refused: one of the two groups was recovered after a loss of quorum, or an address is wrong")
		_, _ = conn.Write([]byte{greetingOtherGroup}) // a courtesy
		return io.EOF
	case meant != s.id:
		s.log.Warn().Str("meant", meant).Stringer("remote", conn.RemoteAddr()).
			Msg("another node was asked for at this node's address: it was replaced by this one, or an address is wrong")
		_, _ = conn.Write([]byte{greetingOtherNode}) // a courtesy
		return io.EOF
	}
	if err := s.holds(conn, caller); err != nil {
		s.log.Warn().Err(err).Str("caller", caller).Stringer("remote", conn.RemoteAddr()).Msg("node refused that is not who it says")
		_, _ = conn.Write([]byte{greetingImpostor}) // a courtesy
		return io.EOF
	}
	if _, err := conn.Write([]byte{greetingYes}); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

func (s *streams) readGreeting(conn net.Conn) (texts [3]string, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetingTimeout)); err != nil {
		return texts, err
	}
	for i := range texts {
		var length [1]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return texts, err
		}
		text := make([]byte, length[0])
		if _, err := io.ReadFull(conn, text); err != nil {
			return texts, err
		}
		texts[i] = string(text)
	}
	return texts, nil
}
