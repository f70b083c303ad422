package mailbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Dialer reaches relays; host.Host is one.
type Dialer interface {
	Connect(ctx context.Context, relay peer.AddrInfo) error
	stream.Dialer
}

// Terms are what a relay gives to a recipient.
type Terms struct {
	Expires time.Time     // of the registration
	Letters int64         // kept at one time
	Bytes   int64         // of letters kept at one time
	TTL     time.Duration // of a letter
}

// Register asks relay to keep letters for the agent of certificate for lifetime.
// d must be the host that the certificate is for. If the relay refused, the
// error wraps its wire.Code; if there is no way to it, wire.Unreachable.
func Register(ctx context.Context, d Dialer, relay peer.AddrInfo, certificate *identity.Certificate, lifetime time.Duration) (Terms, error) {
	var resp mailboxpb.Registered
	req := &mailboxpb.Request{Request: &mailboxpb.Request_Register{Register: &mailboxpb.Register{
		Certificate: certificate.Raw, Lifetime: int64(lifetime / time.Second)}}}
	if err := call(ctx, d, relay, requestTime, req, nil, &resp); err != nil {
		return Terms{}, fmt.Errorf("register mailbox at %s: %w", relay.ID, err)
	}
	return Terms{Expires: time.Unix(resp.Expires, 0), Letters: resp.MaxLetters, Bytes: resp.MaxBytes, TTL: time.Duration(resp.Ttl) * time.Second}, nil
}

// Forget ends a registration, and drops the letters that relay holds for it.
// Errors are those of [Register].
func Forget(ctx context.Context, d Dialer, relay peer.AddrInfo, certificate *identity.Certificate) error {
	req := &mailboxpb.Request{Request: &mailboxpb.Request_Forget{Forget: &mailboxpb.Forget{Certificate: certificate.Raw}}}
	if err := call(ctx, d, relay, requestTime, req, nil, &mailboxpb.Forgotten{}); err != nil {
		return fmt.Errorf("forget mailbox at %s: %w", relay.ID, err)
	}
	return nil
}

// Deposit leaves a letter with relay, and returns until when it is kept. Without
// an error the relay has it on disk. To do so again changes nothing. If the relay
// refused, the error wraps its wire.Code (see the package comment); if there is
// no way to it, wire.Unreachable.
func Deposit(ctx context.Context, d Dialer, relay peer.AddrInfo, l *Letter) (until time.Time, err error) {
	var resp mailboxpb.Stored
	req := &mailboxpb.Request{Request: &mailboxpb.Request_Deposit{Deposit: &mailboxpb.Deposit{
		Recipient: string(l.Recipient), Id: l.ID[:], Expires: l.Expires.Unix(), Size: int64(len(l.Body))}}}
	if err := call(ctx, d, relay, depositTime, req, l.Body, &resp); err != nil {
		return time.Time{}, fmt.Errorf("leave letter %s with %s: %w", l.ID, relay.ID, err)
	}
	return time.Unix(resp.Until, 0), nil
}

// open opens a stream to relay.
func open(ctx context.Context, d Dialer, relay peer.AddrInfo) (network.Stream, error) {
	if err := d.Connect(ctx, relay); err != nil {
		return nil, fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	st, err := d.NewStream(ctx, relay.ID, Protocol)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	return st, nil
}

// call makes a request, followed by the body of a letter if there is one, and
// reads its response, within limit.
func call(ctx context.Context, d Dialer, relay peer.AddrInfo, limit time.Duration, req proto.Message, body []byte, resp proto.Message) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := callOnce(limited, d, relay, req, body, resp)
	switch { // the reset that ended the read is only a symptom
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("%w: no answer within %v", wire.Unreachable, limit)
	}
	return err
}

func callOnce(ctx context.Context, d Dialer, relay peer.AddrInfo, req proto.Message, body []byte, resp proto.Message) error {
	st, err := open(ctx, d, relay)
	if err != nil {
		return err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, func() { st.Reset() })()
	sent := send(st, req)
	if sent == nil && body != nil {
		_, sent = st.Write(wire.AppendFrame(nil, body))
	}
	if sent == nil {
		sent = st.CloseWrite()
	}
	// A relay may refuse before it has read all: what it says tells more than that
	// it stopped reading.
	raw, err := wire.ReadFrame(bufio.NewReader(st), maxSmall)
	if err != nil {
		st.Reset()
		return refusal(errors.Join(err, sent))
	}
	if err := proto.Unmarshal(raw, resp); err != nil {
		return wire.Errorf(wire.Malformed, "response: %w", err)
	}
	return nil
}

// refusal replaces a reset by the relay with its code; a connection that was lost
// is wire.Unreachable.
func refusal(err error) error {
	if code := new(wire.Code); errors.As(stream.RemoteError(err), code) {
		return *code
	}
	return fmt.Errorf("%w: %w", wire.Unreachable, err)
}

// send writes a message as one frame.
func send(w io.Writer, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(wire.AppendFrame(nil, b))
	return err
}
