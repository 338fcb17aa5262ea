package blobstore

import (
	pb "google.golang.org/protobuf/proto"

	"google.golang.org/grpc/mem"
)

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
}

// free gives up the frame's hold on its data.
func (f *frame) free() {
	f.data.Free()
	f.data = nil
}
