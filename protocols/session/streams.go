package session

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session/mux"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/wire"
)

// streams are those of a session under some keys.
type streams struct {
	*mux.Mux
	keys *seal.Keys
}

// newStreams makes the streams of a session under keys: they do not outlive them,
// for the other side may have forgotten what came before.
func (s *Session) newStreams(keys *seal.Keys) *streams {
	return &streams{keys: keys, Mux: mux.New(mux.Config{
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
			return s.write(keys, streamType(t), plain)
		},
		Post: func(t mux.Type, payload []byte) bool {
			plain := append(pool.Get(len(payload))[:0], payload...)
			if !s.link.post(keys, streamType(t), plain, true) {
				return false
			}
			s.sentFrame(len(payload))
			return true
		},
		Accept: s.acceptStream,
	})}
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

// stream takes a frame of a stream, which came under keys.
func (s *Session) stream(keys *seal.Keys, t seal.Type, plain []byte) error {
	streams := s.streams.Load()
	if streams.keys != keys {
		return nil
	}
	if err := streams.Receive(muxType(t), plain); err != nil {
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
		r := &Response{Encoding: Encoding(m.Encoding), Parts: &Parts{session: s, stream: st}}
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
	session *Session
	stream  *mux.Stream
	reader  *bufio.Reader
}

// Next returns the next part; io.EOF after the last one. Another error comes after
// all parts that were sent before it, and is that of the answering side as a
// [Session.Call] would return it; or it has the code with which the stream or the
// session ended.
func (p *Parts) Next() ([]byte, error) {
	if p.reader == nil {
		p.reader = bufio.NewReader(p.stream)
	}
	b, err := wire.ReadFrame(p.reader, p.session.terms.Load().MaxMessageBytes+maxMeta)
	var m sessionpb.Part
	if err == nil {
		err = proto.Unmarshal(b, &m)
	}
	var code wire.Code
	switch {
	case err == nil && m.Error == nil:
		return m.Body, nil
	case err == nil:
		p.stream.Close()
		return nil, p.session.failed(m.Error)
	case errors.Is(err, io.EOF):
		p.stream.Close()
		return nil, io.EOF
	case errors.As(err, &code):
		return nil, wire.Errorf(code, "the response ended: %s", code)
	}
	p.stream.Reset(wire.Malformed)
	return nil, wire.Errorf(wire.Malformed, "read part of a response: %w", err)
}

// Close gives up the parts that were not read: the other side stops producing
// them. It may be called at any time, and ends a Next that waits.
func (p *Parts) Close() { p.stream.Reset(wire.Cancelled) }

// respond sends the parts of a response as they come. An error means that the other
// side knows of none of them.
func (j job) respond(ctx context.Context, resp *Response) error {
	s := j.in.Session
	s.quick.Store(false)
	meta, err := proto.Marshal(&sessionpb.StreamMeta{Request: j.in.ID, Encoding: sessionpb.Encoding(resp.Encoding)})
	if err != nil {
		return err
	}
	st, err := j.openStream(ctx, meta)
	if err != nil {
		_ = s.produce(ctx, resp, func([]byte) error { return err }) // it must know that nobody takes them
		return err
	}
	defer st.Close()
	ctx, stop := whileOpen(ctx, st, j.in.Deadline)
	defer stop()
	err = s.produce(ctx, resp, func(part []byte) error {
		if len(part) > s.terms.Load().MaxMessageBytes {
			return s.tooLarge(len(part))
		}
		return writePart(st, &sessionpb.Part{Body: part})
	})
	if err == nil {
		s.owner.stats.served.Add(1)
		return nil
	}
	s.owner.stats.failed.Add(1)
	if err := writePart(st, &sessionpb.Part{Error: failure(j.in.ID, err)}); err != nil {
		s.log("end of a response not sent", zap.Error(err))
	}
	return nil
}

// openStream opens a stream for the parts of a response.
func (j job) openStream(ctx context.Context, meta []byte) (*mux.Stream, error) {
	streams := j.in.Session.streams.Load()
	if streams.keys != j.keys {
		return nil, wire.Errorf(wire.SessionClosed, "the session was resumed: nobody waits for the response")
	}
	return streams.Open(ctx, meta)
}

// produce calls a handler's Produce; a panic in it is an error.
func (s *Session) produce(ctx context.Context, resp *Response, send func([]byte) error) (err error) {
	defer s.recovered(&err)
	return resp.Produce(ctx, send)
}

// whileOpen derives a context that ends when the other side gives the stream up;
// and when it ends otherwise, a Write that waits for the other side ends too.
func whileOpen(ctx context.Context, st *mux.Stream, deadline time.Time) (context.Context, func()) {
	inner, cancel := context.WithCancel(ctx)
	go func() { // ends with the stream
		if _, err := io.Copy(io.Discard, st); err != nil {
			cancel()
		}
	}()
	ctx = &deadlined{inner, deadline}
	unbind := context.AfterFunc(ctx, func() { st.Reset(errorCode(ctx.Err())) })
	return ctx, func() { unbind(); cancel() }
}

func writePart(st *mux.Stream, m *sessionpb.Part) error {
	size := proto.Size(m)
	b := binary.AppendUvarint(pool.Get(size + binary.MaxVarintLen64)[:0], uint64(size))
	defer func() { pool.Put(b) }()
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, m)
	if err == nil {
		_, err = st.Write(b)
	}
	return err
}
