package blobstore

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// countingPool counts the buffers that are in use.
type countingPool struct{ used int }

func (p *countingPool) Get(length int) *[]byte {
	p.used++
	b := make([]byte, length, max(length, 4<<10)) // Enough for grpc/mem to count references.
	return &b
}

func (p *countingPool) Put(*[]byte) { p.used-- }

// split puts an encoded message into buffers of random sizes, as it comes from the
// network.
func split(encoded []byte, pool *countingPool, random *rand.Rand) mem.BufferSlice {
	var buffers mem.BufferSlice
	for len(encoded) > 0 || random.IntN(4) == 0 {
		n := min(random.IntN(40), len(encoded))
		memory := pool.Get(n)
		copy(*memory, encoded)
		buffers = append(buffers, mem.NewBuffer(memory, pool))
		encoded = encoded[n:]
	}
	return buffers
}

func testMessages() map[string]pb.Message {
	header := &proto.ShardHeader{ExtentId: bytes.Repeat([]byte{7}, 16), ShardNumber: 300, Layout: &proto.Layout{DataShards: 2, CellBytes: 1 << 18}}
	trailer := &proto.ShardTrailer{ExtentSize: 1 << 60, CellChecksums: []uint32{0, 1, 1<<32 - 1}}
	data := bytes.Repeat([]byte("some cells "), 30)
	return map[string]pb.Message{
		"nothing written":    &proto.WriteShardRequest{},
		"header":             &proto.WriteShardRequest{Header: header},
		"data":               &proto.WriteShardRequest{Data: data},
		"trailer":            &proto.WriteShardRequest{Trailer: trailer},
		"everything written": &proto.WriteShardRequest{Header: header, Trailer: trailer, Data: data},
		"nothing read":       &proto.ReadShardResponse{},
		"read":               &proto.ReadShardResponse{CellChecksums: trailer.GetCellChecksums(), Data: data},
	}
}

// bulk returns the data of a message, and the message without it.
func bulk(m pb.Message) ([]byte, pb.Message) {
	rest := pb.Clone(m)
	switch rest := rest.(type) {
	case *proto.WriteShardRequest:
		data := rest.GetData()
		rest.Data = nil
		return data, rest
	case *proto.ReadShardResponse:
		data := rest.GetData()
		rest.Data = nil
		return data, rest
	}
	return nil, rest
}

// TestCodecSendsProtobuf: what a frame becomes on the wire, protobuf understands.
func TestCodecSendsProtobuf(t *testing.T) {
	for name, want := range testMessages() {
		t.Run(name, func(t *testing.T) {
			data, rest := bulk(want)
			pool := &countingPool{}
			random := rand.New(rand.NewPCG(1, 2))
			f := &frame{message: rest, data: split(data, pool, random)}
			encoded, err := Codec().Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			f.free() // As after SendMsg, when gRPC may not have sent it yet.
			got := want.ProtoReflect().New().Interface()
			if err := pb.Unmarshal(encoded.Materialize(), got); err != nil {
				t.Fatal(err)
			}
			if !pb.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			encoded.Free()
			if pool.used != 0 {
				t.Errorf("%d buffers were not freed", pool.used)
			}
		})
	}
}

// TestCodecHandsOver: nobody frees an answer after it was sent.
func TestCodecHandsOver(t *testing.T) {
	pool := &countingPool{}
	f := &frame{message: &proto.ReadShardResponse{}, data: split([]byte("some cells"), pool, rand.New(rand.NewPCG(1, 2))), handOver: true}
	encoded, err := Codec().Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	encoded.Free()
	if pool.used != 0 {
		t.Errorf("%d buffers were not freed", pool.used)
	}
}

// TestCodecTakesProtobuf: what protobuf sends, a frame understands, however the
// bytes come in.
func TestCodecTakesProtobuf(t *testing.T) {
	for name, want := range testMessages() {
		t.Run(name, func(t *testing.T) {
			encoded, err := pb.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			wantData, wantRest := bulk(want)
			f := &frame{message: want.ProtoReflect().New().Interface()}
			pool := &countingPool{}
			for seed := range uint64(50) {
				buffers := split(encoded, pool, rand.New(rand.NewPCG(3, seed)))
				if err := Codec().Unmarshal(buffers, f); err != nil {
					t.Fatal(err)
				}
				buffers.Free() // As gRPC does.
				if got := f.data.Materialize(); !bytes.Equal(got, wantData) || !pb.Equal(f.message, wantRest) {
					t.Fatalf("got %v with %q, want %v", f.message, got, want)
				}
				if got := bytes.Join(f.pieces(), nil); !bytes.Equal(got, wantData) {
					t.Fatalf("pieces are %q", got)
				}
			}
			f.free()
			if pool.used != 0 {
				t.Errorf("%d buffers were not freed", pool.used)
			}
		})
	}
}

// TestCodecLeavesTheRestAlone: other messages, and the same messages without a
// frame, pass as ever.
func TestCodecLeavesTheRestAlone(t *testing.T) {
	messages := testMessages()
	messages["other"] = &proto.ReadShardRequest{ExtentId: []byte("id"), Cells: 4}
	for name, want := range messages {
		encoded, err := Codec().Marshal(want)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := want.ProtoReflect().New().Interface()
		if err := Codec().Unmarshal(encoded, got); err != nil || !pb.Equal(got, want) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if Codec().Name() != "proto" {
		t.Errorf("the codec is called %q on the wire", Codec().Name())
	}
}

// FuzzCodec compares a frame with protobuf's own reading of any bytes.
func FuzzCodec(f *testing.F) {
	for _, m := range testMessages() {
		if encoded, err := pb.Marshal(m); err == nil {
			f.Add(encoded, uint64(1))
			f.Add(append(encoded, encoded...), uint64(2))
			f.Add(encoded[:len(encoded)/2], uint64(3))
		}
	}
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, dataField, protowire.VarintType), 5), uint64(4))
	f.Add(protowire.AppendTag(nil, dataField, protowire.StartGroupType), uint64(5))
	f.Add(bytes.Repeat([]byte{0xff}, 11), uint64(6))
	f.Fuzz(func(t *testing.T, encoded []byte, seed uint64) {
		want := &proto.WriteShardRequest{}
		wantErr := pb.Unmarshal(encoded, want)
		pool := &countingPool{}
		buffers := split(encoded, pool, rand.New(rand.NewPCG(seed, 0)))
		got := &frame{message: &proto.WriteShardRequest{}}
		err := Codec().Unmarshal(buffers, got)
		buffers.Free()
		if err == nil && wantErr == nil {
			data, rest := bulk(want)
			if !bytes.Equal(got.data.Materialize(), data) || !pb.Equal(got.message, rest) {
				t.Errorf("got %v with %q, want %v", got.message, got.data.Materialize(), want)
			}
		}
		// Groups are refused, though protobuf skips over unknown ones.
		if err == nil && wantErr != nil {
			t.Errorf("took what protobuf refuses: %v", wantErr)
		}
		got.free()
		if pool.used != 0 {
			t.Errorf("%d buffers were not freed", pool.used)
		}
	})
}
