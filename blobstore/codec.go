package blobstore

import (
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	pb "google.golang.org/protobuf/proto"
)

// dataField is the number of the field that carries bulk in WriteShardRequest and
// ReadShardResponse.
const dataField protowire.Number = 15

// Codec returns the codec that servers (grpc.ForceServerCodecV2) and connections
// (grpc.ForceCodecV2) between nodes must use. It is protobuf, and its bytes are
// those of the ordinary codec; but bulk passes through without being copied, which
// halves the processor time of a shard's way between two nodes.
func Codec() encoding.CodecV2 {
	return codec{CodecV2: encoding.GetCodecV2(protocodec.Name)}
}

// codec passes frames through and leaves every other message to the ordinary
// codec.
type codec struct{ encoding.CodecV2 }

// Marshal encodes a message. The buffers returned have references of their own.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head, err := pb.Marshal(f.message)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w", f.message, err)
	}
	size := f.data.Len()
	if size == 0 {
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, dataField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(size))
	encoded := append(mem.BufferSlice{mem.SliceBuffer(head)}, f.data...)
	if f.handOver {
		f.data = nil
	} else {
		f.data.Ref()
	}
	return encoded, nil
}

// Unmarshal decodes a message. A frame holds on to the buffers with its bulk; all
// else is copied out of them.
func (c codec) Unmarshal(encoded mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return c.CodecV2.Unmarshal(encoded, v)
	}
	f.free()
	pb.Reset(f.message)
	if err := f.unmarshal(encoded); err != nil {
		f.free()
		return fmt.Errorf("unmarshal %T: %w", f.message, err)
	}
	return nil
}

// frame is a message whose bulk, its field 15 called data, stays in the buffers
// that it came in or was shared from, and is never copied. On the wire it is an
// ordinary protobuf message. Only connections and servers with Codec can carry
// one: give it to SendMsg, RecvMsg and Invoke in place of the message.
type frame struct {
	// message has all fields but data: a *proto.WriteShardRequest or a
	// *proto.ReadShardResponse. Its own Data is empty.
	message pb.Message
	// data is owned by the frame. Sending takes references of its own, so after
	// sending, as after use of what was received, free it once.
	data mem.BufferSlice
	// handOver is for the answer to a unary call, which nobody has in hand after it
	// was sent: sending it, which is possible once, gives the frame's own references
	// away.
	handOver bool
}

// free gives up the frame's hold on its data.
func (f *frame) free() {
	f.data.Free()
	f.data = nil
}

// pieces returns the data as slices, which are valid until the frame is freed.
func (f *frame) pieces() [][]byte {
	pieces := make([][]byte, 0, len(f.data))
	for _, b := range f.data {
		pieces = append(pieces, b.ReadOnlyData())
	}
	return pieces
}

// unmarshal takes the bulk out of the encoded message and leaves the few bytes
// around it to protobuf. As protobuf demands, fields come in any order, and the
// last of several bulks counts.
func (f *frame) unmarshal(encoded mem.BufferSlice) error {
	in := wireReader{rest: encoded, left: encoded.Len()}
	var fields []byte
	for in.left > 0 {
		tag, err := in.varint()
		if err != nil {
			return err
		}
		number, kind := protowire.DecodeTag(tag)
		if number == dataField && kind == protowire.BytesType {
			size, err := in.length()
			if err != nil {
				return err
			}
			f.data.Free()
			f.data = in.share(size)
			continue
		}
		fields = protowire.AppendVarint(fields, tag)
		if fields, err = in.appendValue(fields, kind); err != nil {
			return err
		}
	}
	return pb.Unmarshal(fields, f.message)
}

// wireReader reads the protobuf encoding from buffers, whose borders fall
// anywhere.
type wireReader struct {
	rest mem.BufferSlice
	// skip is how much of the first of them was read.
	skip int
	// left is how many bytes are unread.
	left int
}

// next returns at most size unread bytes, all from one buffer, and the part of
// the buffer that they are. The caller has seen to it that something is left.
func (r *wireReader) next(size int) (b mem.Buffer, from, to int) {
	for r.skip == r.rest[0].Len() {
		r.rest, r.skip = r.rest[1:], 0
	}
	b, from = r.rest[0], r.skip
	to = min(from+size, b.Len())
	r.skip = to
	r.left -= to - from
	return b, from, to
}

func (r *wireReader) varint() (uint64, error) {
	var encoded [10]byte // No varint is longer.
	for i := range encoded {
		if r.left == 0 {
			return 0, io.ErrUnexpectedEOF
		}
		b, from, _ := r.next(1)
		encoded[i] = b.ReadOnlyData()[from]
		if encoded[i] < 0x80 {
			value, n := protowire.ConsumeVarint(encoded[:i+1])
			return value, protowire.ParseError(n)
		}
	}
	return 0, errors.New("varint is too long")
}

// length reads the length of a field, and sees that so much is there.
func (r *wireReader) length() (int, error) {
	size, err := r.varint()
	if err != nil {
		return 0, err
	}
	if size > uint64(r.left) {
		return 0, io.ErrUnexpectedEOF
	}
	return int(size), nil
}

// appendValue copies a field's value as it is encoded.
func (r *wireReader) appendValue(to []byte, kind protowire.Type) ([]byte, error) {
	size := 0
	switch kind {
	case protowire.VarintType:
		value, err := r.varint()
		return protowire.AppendVarint(to, value), err
	case protowire.Fixed32Type:
		size = 4
	case protowire.Fixed64Type:
		size = 8
	case protowire.BytesType:
		var err error
		if size, err = r.length(); err != nil {
			return nil, err
		}
		to = protowire.AppendVarint(to, uint64(size))
	default:
		return nil, errors.New("group field, which proto3 does not have")
	}
	if size > r.left {
		return nil, io.ErrUnexpectedEOF
	}
	for size > 0 {
		b, from, end := r.next(size)
		to = append(to, b.ReadOnlyData()[from:end]...)
		size -= end - from
	}
	return to, nil
}

// share returns the next bytes with references of their own.
func (r *wireReader) share(size int) mem.BufferSlice {
	var shared mem.BufferSlice
	for size > 0 {
		b, from, to := r.next(size)
		shared = append(shared, b.Slice(from, to))
		size -= to - from
	}
	return shared
}
