package consensus

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

// A connection for Raft's messages begins with the id of the node that is meant:
// its length in one byte, then the id. The node answers with greetingYes if that
// is its own id, or else with greetingNo and the end of the connection.
const (
	greetingYes = 'y'
	greetingNo  = 'n'
)

// greetingTimeout bounds the wait for a greeting.
const greetingTimeout = 5 * time.Second

// errOtherNode means that another node than the one meant listens at an address.
var errOtherNode = errors.New("another node answers there: the one meant was replaced or lost its data")

// dialNode connects to a node, and to no other that listens at its address.
func (s *streams) dialNode(id, address string, timeout time.Duration) (conn net.Conn, err error) {
	conn, err = s.network.Dial(address, timeout)
	if err != nil {
		return nil, err
	}
	if err := askFor(conn, id, timeout); err != nil {
		_ = conn.Close() // the reason is known
		return nil, fmt.Errorf("connect to node %s at %s: %w", id, address, err)
	}
	return conn, nil
}

func askFor(conn net.Conn, id string, timeout time.Duration) error {
	if len(id) > math.MaxUint8 {
		return fmt.Errorf("its id has %d bytes", len(id))
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write(append([]byte{byte(len(id))}, id...)); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != greetingYes {
		return errOtherNode
	}
	return conn.SetDeadline(time.Time{})
}

// greet reads who is meant on an incoming connection and answers. An error ends
// the connection.
func (s *streams) greet(conn net.Conn) error {
	meant, err := s.readGreeting(conn)
	switch {
	case err != nil:
		s.log.Debug().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("connection without a greeting")
		return io.EOF // which the library takes for a connection that was not needed
	case meant != s.id:
		s.log.Warn().Str("meant", meant).Stringer("remote", conn.RemoteAddr()).
			Msg("another node was asked for at this node's address: it was replaced by this one, or an address is wrong")
		_, _ = conn.Write([]byte{greetingNo}) // a courtesy
		return io.EOF
	}
	if _, err := conn.Write([]byte{greetingYes}); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

func (s *streams) readGreeting(conn net.Conn) (id string, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetingTimeout)); err != nil {
		return "", err
	}
	var length [1]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return "", err
	}
	text := make([]byte, length[0])
	_, err = io.ReadFull(conn, text)
	return string(text), err
}
