package blobstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	pb "google.golang.org/protobuf/proto"
)

// Shards travel over links: connections of their own beside gRPC's, by the same certificates. A link
// carries one call after the other, each a few messages (proto.ShardCall), of which both ends know what comes next:
//
//	offset  bytes
//	     0      4  bytes of the head, h
//	     4      4  bytes of the bulk, b
//	     8      h  head, a protobuf message, or nothing
//	 8 + h      b  bulk: bytes of a shard
//
// Numbers are big endian. Bulk goes from the memory that it is in to the connection, and from there to where it is wanted;
// DESIGN.md says why it does not go by gRPC.
const (
	linkPrefixBytes = 8
	// maxHeadBytes is enough for the checksums of MaxShardCells cells, maxCallBytes for a call, of which it is not known yet whether
	// the caller may make it.
	maxHeadBytes, maxCallBytes = 2 << 20, 16 << 10
	// linkMemoryBytes is how much memory a link keeps for the heads to come.
	linkMemoryBytes = 64 << 10
	// maxBulkBytes bounds the bulk of one message.
	maxBulkBytes = 8 << 20
	// recordBytes is what TLS puts into one record. The first of a message has its head and as much of its bulk as fits.
	recordBytes = 16 << 10
)

// errLink says that what came over a link is no message.
var errLink = errors.New("not a message of a link")

// link is one end of a connection for shards. One goroutine sends, and one receives.
type link struct {
	conn net.Conn
	// sending has the first record of a message, receiving the head of one.
	sending, receiving []byte
	prefix             [linkPrefixBytes]byte
	corked             *CorkedConn // nil for none
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn}
	if secured, ok := conn.(interface{ NetConn() net.Conn }); ok {
		l.corked, _ = secured.NetConn().(*CorkedConn)
	}
	return l
}

// send sends a message. The bulk is not used any more when it returns. After an error the link is of no use.
func (l *link) send(head pb.Message, bulk ...[]byte) error {
	size := 0
	for _, piece := range bulk {
		size += len(piece)
	}
	first := append(l.sending[:0], make([]byte, linkPrefixBytes)...)
	if head != nil {
		var err error
		if first, err = (pb.MarshalOptions{}).MarshalAppend(first, head); err != nil {
			return fmt.Errorf("marshal %T: %w", head, err)
		}
	}
	binary.BigEndian.PutUint32(first, uint32(len(first)-linkPrefixBytes))
	binary.BigEndian.PutUint32(first[4:], uint32(size))
	for i := 0; i < len(bulk) && len(first) < recordBytes; i++ {
		fits := min(len(bulk[i]), recordBytes-len(first))
		first = append(first, bulk[i][:fits]...)
		if bulk[i] = bulk[i][fits:]; len(bulk[i]) > 0 {
			break
		}
	}
	if l.sending = first; len(first) > linkMemoryBytes {
		l.sending = nil
	}
	if size < recordBytes || l.corked == nil {
		return l.write(first, bulk)
	}
	l.corked.cork()
	return errors.Join(l.write(first, bulk), l.corked.uncork())
}

func (l *link) write(first []byte, bulk [][]byte) error {
	if _, err := l.conn.Write(first); err != nil {
		return err
	}
	for _, piece := range bulk {
		if len(piece) == 0 {
			continue
		}
		if _, err := l.conn.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// receive receives a message, with a head of so many bytes at most, up to its bulk, whose size it returns, and says whether it has a head. The caller reads
// the bulk from conn. Errors: io.EOF if the other end has closed the link before the message, errLink.
func (l *link) receive(head pb.Message, maxHead uint32) (hasHead bool, bulkBytes int, err error) {
	if _, err := io.ReadFull(l.conn, l.prefix[:]); err != nil {
		return false, 0, err
	}
	headBytes, bulk := binary.BigEndian.Uint32(l.prefix[:]), binary.BigEndian.Uint32(l.prefix[4:])
	if headBytes > maxHead || bulk > maxBulkBytes {
		return false, 0, fmt.Errorf("%w: head of %d bytes, bulk of %d", errLink, headBytes, bulk)
	}
	if cap(l.receiving) < int(headBytes) {
		l.receiving = make([]byte, headBytes)
	}
	encoded := l.receiving[:headBytes]
	if headBytes > linkMemoryBytes {
		l.receiving = nil
	}
	if _, err := io.ReadFull(l.conn, encoded); err != nil {
		return false, 0, unexpectedEnd(err)
	}
	if err := pb.Unmarshal(encoded, head); err != nil {
		return false, 0, fmt.Errorf("%w: %w", errLink, err)
	}
	return headBytes > 0, int(bulk), nil
}

// receiveBulk fills a part of a message's bulk into buf.
func (l *link) receiveBulk(buf []byte) error {
	_, err := io.ReadFull(l.conn, buf)
	return unexpectedEnd(err)
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// abort breaks the connection, whoever is at work on it, and does not wait for anything.
func (l *link) abort() {
	conn := l.conn
	if secured, ok := conn.(interface{ NetConn() net.Conn }); ok { // whose own Close says goodbye
		conn = secured.NetConn()
	}
	_ = conn.Close() // it is broken either way
}
