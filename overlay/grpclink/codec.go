package grpclink

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"openmesh/protocols/wire"
)

// chunk is a Chunk message, coded by hand so that its bytes are copied once on
// each side: between the caller's buffer and gRPC's.
type chunk struct {
	coded mem.Buffer // the message; what holds data. Free it when done.
	data  []byte
	reset wire.Code // 0 if none
}

// Field tags of Chunk: number and wire type.
const (
	dataTag  = 1<<3 | byte(protowire.BytesType)
	resetTag = 2<<3 | byte(protowire.VarintType)
)

// newChunk copies data, at most maxChunk bytes, into a message.
func newChunk(pool mem.BufferPool, data []byte) *chunk {
	size := 1 + protowire.SizeBytes(len(data))
	var buf *[]byte
	if mem.IsBelowBufferPoolingThreshold(size) {
		buf = new([]byte)
		*buf = make([]byte, 0, size)
	} else {
		buf = pool.Get(size)
	}
	*buf = append(protowire.AppendVarint(append((*buf)[:0], dataTag), uint64(len(data))), data...)
	return &chunk{coded: mem.NewBuffer(buf, pool)}
}

func newReset(code wire.Code) *chunk {
	return &chunk{coded: mem.SliceBuffer(protowire.AppendVarint([]byte{resetTag}, uint64(code)))}
}

// parseChunk reads a message. Fields of newer peers are ignored.
func parseChunk(b []byte) (data []byte, reset wire.Code, err error) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, 0, protowire.ParseError(n)
		}
		if !number.IsValid() {
			return nil, 0, fmt.Errorf("field %d cannot be", number)
		}
		b = b[n:]
		switch {
		case number == 1 && kind == protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		case number == 2 && kind == protowire.VarintType:
			var v uint64
			v, n = protowire.ConsumeVarint(b)
			reset = wire.Code(v)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return nil, 0, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return data, reset, nil
}

// codec codes chunks by hand and other messages as Protobuf.
type codec struct {
	pool  mem.BufferPool
	proto encoding.CodecV2
}

func newCodec() codec {
	return codec{pool: mem.DefaultBufferPool(), proto: encoding.GetCodecV2(protocodec.Name)}
}

func (c codec) Name() string { return protocodec.Name }

// Marshal gives the buffer of a chunk away.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if out, ok := v.(*chunk); ok {
		return mem.BufferSlice{out.coded}, nil
	}
	return c.proto.Marshal(v)
}

func (c codec) Unmarshal(b mem.BufferSlice, v any) error {
	in, ok := v.(*chunk)
	if !ok {
		return c.proto.Unmarshal(b, v)
	}
	coded := b.MaterializeToBuffer(c.pool)
	data, reset, err := parseChunk(coded.ReadOnlyData())
	if err != nil {
		coded.Free()
		return fmt.Errorf("chunk: %w", err)
	}
	*in = chunk{coded: coded, data: data, reset: reset}
	return nil
}
