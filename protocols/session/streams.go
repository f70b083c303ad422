package session

import (
	"bufio"
	"context"
	"errors"
	"io"

	pool "github.com/libp2p/go-buffer-pool"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session/mux"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/wire"
)

// newStreams makes the streams of a session under its present keys: they do not
// outlive them, for the other side may have forgotten what came before.
func (s *Session) newStreams() *mux.Mux {
	return mux.New(mux.Config{
		Initiator: s.isInitiator(),
		Send: func(t mux.Type, payload ...[]byte) error {
			n := 0
			for _, p := range payload {
				n += len(p)
			}
			plain := pool.Get(n)[:0]
			for _, p := range payload {
				plain = append(plain, p...)
			}
			return s.write(streamType(t), plain)
		},
		Post: func(t mux.Type, payload []byte) bool {
			plain := append(pool.Get(len(payload))[:0], payload...)
			if !s.link.post(streamType(t), plain, true) {
				return false
			}
			s.sentFrame(len(payload))
			return true
		},
		Accept: s.acceptStream,
	})
}

// streamType is the frame type of a mux's frame, and back.
func streamType(t mux.Type) seal.Type {
	return seal.StreamOpen + seal.Type(t) - seal.Type(mux.TypeOpen)
}
func muxType(t seal.Type) mux.Type { return mux.TypeOpen + mux.Type(t-seal.StreamOpen) }

// OpenStream opens a stream of bytes to the other side, which learns meta, at most
// [mux.MaxMeta] bytes. It takes a round trip. Streams end with the process of
// either side.
func (s *Session) OpenStream(ctx context.Context, meta []byte) (*mux.Stream, error) {
	b, err := proto.Marshal(&sessionpb.StreamMeta{Meta: meta})
	if err != nil {
		return nil, err
	}
	return s.streams.Load().Open(ctx, b)
}

// stream takes a frame of a stream.
func (s *Session) stream(t seal.Type, plain []byte) error {
	if err := s.streams.Load().Receive(muxType(t), plain); err != nil {
		return broken{code: wire.CodeOf(err)}
	}
	return nil
}

// acceptStream takes a stream that the other side opened: the parts of a response,
// or one for the application.
func (s *Session) acceptStream(st *mux.Stream) {
	var m sessionpb.StreamMeta
	if proto.Unmarshal(st.Meta(), &m) != nil {
		st.Reset(wire.Malformed)
		return
	}
	if m.Request != 0 {
		r := &Response{Encoding: Encoding(m.Encoding), Parts: &Parts{stream: st, limit: s.contract.MaxMessageBytes}}
		if !s.calls.finish(m.Request, result{response: r}) {
			st.Reset(wire.Cancelled)
		}
		return
	}
	if s.owner.cfg.Stream == nil {
		st.Reset(wire.Unsupported)
		return
	}
	s.owner.cfg.Stream(s, st, m.Meta)
}

// Parts are the parts of a response that comes bit by bit. A reader that is slow
// holds up nobody but who answers it.
type Parts struct {
	stream *mux.Stream
	reader *bufio.Reader
	limit  int
}

// Next returns the next part; io.EOF after the last one. Another error has the
// code with which the answering side, or the session, ended.
func (p *Parts) Next() ([]byte, error) {
	if p.reader == nil {
		p.reader = bufio.NewReader(p.stream)
	}
	b, err := wire.ReadFrame(p.reader, p.limit)
	var code wire.Code
	switch {
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	case errors.As(err, &code):
		return nil, wire.Errorf(code, "the response ended: %s", code)
	case err != nil:
		p.stream.Reset(wire.Malformed)
		return nil, wire.Errorf(wire.Malformed, "read part of a response: %w", err)
	}
	return b, nil
}

// Close gives up the parts that were not read.
func (p *Parts) Close() { p.stream.Reset(wire.Cancelled) }

// respond sends the parts of a response as they come.
func (j job) respond(ctx context.Context, resp *Response) error {
	s := j.in.Session
	meta, err := proto.Marshal(&sessionpb.StreamMeta{Request: j.in.ID, Encoding: sessionpb.Encoding(resp.Encoding)})
	if err != nil {
		return err
	}
	st, err := s.streams.Load().Open(ctx, meta)
	if err != nil {
		return err
	}
	err = resp.Produce(ctx, func(part []byte) error {
		if len(part) > s.contract.MaxMessageBytes {
			return s.tooLarge(len(part))
		}
		_, err := st.Write(wire.AppendFrame(nil, part))
		return err
	})
	if err != nil {
		st.Reset(errorCode(err))
		return nil // the other side learns it by the stream
	}
	return st.CloseWrite()
}
