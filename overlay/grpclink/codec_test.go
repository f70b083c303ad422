package grpclink

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"openmesh/overlay/grpclink/grpclinkpb"
	"openmesh/protocols/wire"
)

// What is coded by hand is what the Protobuf library makes of it.
func TestChunkIsProtobuf(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 127, 128, 1021, 1022, 2000, maxChunk} {
		data := random(size)
		var m grpclinkpb.Chunk
		c := newChunk(mem.DefaultBufferPool(), data)
		if err := proto.Unmarshal(c.coded.ReadOnlyData(), &m); err != nil || !bytes.Equal(m.Data, data) || m.Reset_ != 0 {
			t.Errorf("%d bytes: %v", size, err)
		}
		c.coded.Free()
	}
	var m grpclinkpb.Chunk
	if err := proto.Unmarshal(newReset(wire.KeyRevoked).coded.ReadOnlyData(), &m); err != nil || wire.Code(m.Reset_) != wire.KeyRevoked {
		t.Errorf("reset: %v, %v", &m, err)
	}
}

// Any message is read as the Protobuf library reads it, whole or in pieces.
func FuzzChunk(f *testing.F) {
	f.Add([]byte("\x0a\x01x\x10\x83\x02"), 1)
	f.Add([]byte("\x0a\x01x\x1a\x01y\x0a\x01z"), 3)
	f.Add([]byte("\x0b\x0c\x0a\xff\xff\xff\xff\xff"), 0)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		var want grpclinkpb.Chunk
		wantErr := proto.Unmarshal(b, &want)
		pieces := mem.BufferSlice{mem.SliceBuffer(b)}
		if cut > 0 && cut < len(b) {
			pieces = mem.BufferSlice{mem.SliceBuffer(b[:cut]), mem.SliceBuffer(b[cut:])}
		}
		var got chunk
		err := newCodec().Unmarshal(pieces, &got)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%x: %v; Protobuf: %v", b, err, wantErr)
		}
		if err == nil && (!bytes.Equal(got.data, want.Data) || got.reset != wire.Code(want.Reset_)) {
			t.Errorf("%x: %x, %d; Protobuf: %v", b, got.data, got.reset, &want)
		}
	})
}
