package blobstore

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // Registers the ordinary codec.
)

// Codec returns the codec that servers (grpc.ForceServerCodecV2) and connections
// (grpc.ForceCodecV2) between nodes must use.
func Codec() encoding.CodecV2 { return encoding.GetCodecV2("proto") }
