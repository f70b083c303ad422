package mailbox_test

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/mailbox/mailboxtest"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

// letter is one from a to b that expires in an hour.
func letter(t testing.TB, a, b *mailboxtest.Identity, payload []byte) *mailbox.Letter {
	t.Helper()
	l, err := mailbox.Seal(a.Sender(), b.Cert, payload, noon, noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSealOpen(t *testing.T) {
	t.Parallel()
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	for _, size := range []int{0, 1, 500, 3000, 70000, mailbox.MaxPayload} {
		payload := make([]byte, size)
		rand.Read(payload)
		l := letter(t, a, b, payload)
		if len(l.Body) > mailbox.MaxBody || l.Recipient != b.Agent || !l.Expires.Equal(noon.Add(time.Hour)) {
			t.Errorf("letter of %d for %s until %s", len(l.Body), l.Recipient, l.Expires)
		}
		from, got, err := mailbox.Open(b.Recipient(at(noon)), l, noon)
		if err != nil || !bytes.Equal(got, payload) || from.Agent != a.Agent {
			t.Errorf("%d bytes: Open() = %d bytes, %v", size, len(got), err)
		}
		if bytes.Contains(l.Body, []byte(a.Agent)) || bytes.Contains(l.Body, []byte(a.Cert.Peer)) || size > 100 && bytes.Contains(l.Body, payload[:50]) {
			t.Errorf("%d bytes: the body says who wrote what", size)
		}
	}
}

// Payloads of sizes close together have bodies of one size, and none grows by
// much more than an eighth.
func TestPadding(t *testing.T) {
	t.Parallel()
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	size := func(n int) int { return len(letter(t, a, b, make([]byte, n)).Body) }
	if x, y := size(0), size(100); x != y {
		t.Errorf("empty: %d, 100 bytes: %d", x, y)
	}
	if x, y := size(1_000_000), size(1_000_100); x != y {
		t.Errorf("1,000,000: %d, 1,000,100: %d", x, y)
	}
	seen := map[int]bool{}
	for n := 4000; n < 12000; n += 100 {
		s := size(n)
		if seen[s] = true; float64(s) > float64(n+3000)*1.13 {
			t.Errorf("%d bytes are sealed in %d", n, s)
		}
	}
	if len(seen) > 24 {
		t.Errorf("from 4,000 to 12,000 bytes there are %d sizes", len(seen))
	}
}

func TestSealRefuses(t *testing.T) {
	t.Parallel()
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	otherKEM := *b.Cert
	otherKEM.MailboxKEM = 0x20
	for name, test := range map[string]struct {
		from    mailbox.Sender
		to      *identity.Certificate
		payload int
		now     time.Time
		expires time.Time
		want    wire.Code
	}{
		"too large":      {a.Sender(), b.Cert, mailbox.MaxPayload + 1, noon, noon.Add(time.Hour), wire.TooLarge},
		"expired":        {a.Sender(), b.Cert, 1, noon, noon, wire.InvalidArgument},
		"too long":       {a.Sender(), b.Cert, 1, noon, noon.Add(8 * 24 * time.Hour), wire.InvalidArgument},
		"old recipient":  {a.Sender(), b.Cert, 1, noon.Add(24 * time.Hour), noon.Add(25 * time.Hour), wire.KeyExpired},
		"another's key":  {mailbox.Sender{Host: b.Host, Certificate: a.Cert}, b.Cert, 1, noon, noon.Add(time.Hour), wire.InvalidArgument},
		"KEM of another": {a.Sender(), &otherKEM, 1, noon, noon.Add(time.Hour), wire.Unsupported},
	} {
		_, err := mailbox.Seal(test.from, test.to, make([]byte, test.payload), test.now, test.expires)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: Seal() = %v, want %v", name, err, test.want)
		}
	}
}

// A letter waits while keys are rotated on both sides.
func TestRotationWhileWaiting(t *testing.T) {
	t.Parallel()
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	l := letter(t, a, b, []byte("hello"))
	later := noon.Add(30 * time.Minute)
	r := b.Recipient(at(later))
	a.Rotate(t, 2, noon.Add(time.Minute), later.Add(time.Hour))
	b.Rotate(t, 2, noon.Add(time.Minute), later.Add(time.Hour))
	if _, err := r.Verifier.Verify(a.Cert.Raw); err != nil { // the old one is superseded now
		t.Fatal(err)
	}
	if from, got, err := mailbox.Open(r, l, later); err != nil || string(got) != "hello" || from.Version != 1 {
		t.Errorf("Open() = %q, %v", got, err)
	}
	delete(b.Boxes, 1)
	if _, _, err := mailbox.Open(r, l, later); !errors.Is(err, wire.NotFound) {
		t.Errorf("Open() without the key = %v", err)
	}
}

// The error of a key that cannot be had now is told from one that is gone.
func TestKeyOutOfReach(t *testing.T) {
	t.Parallel()
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	r := b.Recipient(at(noon))
	r.Mailbox = func(uint32) (hpke.PrivateKey, error) { return nil, errors.New("disk on fire") }
	if _, _, err := mailbox.Open(r, letter(t, a, b, nil), noon); wire.CodeOf(err) != wire.Internal {
		t.Errorf("Open() = %v", err)
	}
}

// What a relay, a depositor or another recipient may try.
func TestForgery(t *testing.T) {
	t.Parallel()
	a, b, mallory := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	good := letter(t, a, b, []byte("pay 5"))
	change := func(f func(*mailbox.Letter)) *mailbox.Letter {
		l := *good
		l.Body = slices.Clone(good.Body)
		f(&l)
		return &l
	}
	// forged is content that names any sender, signed and sealed by Mallory.
	forged := func(f func(*mailboxpb.Content), key crypto.PrivKey) *mailbox.Letter {
		l := &mailbox.Letter{Recipient: b.Agent, ID: mailbox.NewID(), Expires: noon.Add(time.Hour)}
		c := &mailboxpb.Content{Recipient: string(l.Recipient), Id: l.ID[:], Created: noon.Unix(), Expires: l.Expires.Unix(), Certificate: mallory.Cert.Raw, Payload: []byte("pay 500")}
		f(c)
		mailboxtest.Wrap(t, l, b.Cert, mailboxtest.Sign(t, c, key, "openmesh-mailbox-letter", "/openmesh/mailbox-letter/v1"))
		return l
	}
	received := letter(t, a, mallory, []byte("for mallory")) // a letter to Mallory, which she passes on as if to b
	envelope := decrypt(t, mallory, received)
	passed := &mailbox.Letter{Recipient: b.Agent, ID: received.ID, Expires: received.Expires}
	mailboxtest.Wrap(t, passed, b.Cert, envelope)
	old := mailboxtest.NewIdentity(t, noon)
	old.Rotate(t, 2, noon.Add(-3*time.Hour), noon.Add(-2*time.Hour))
	foreign := protocoltest.NewAgent(t, mailboxtest.Lab+1, noon)

	for name, test := range map[string]struct {
		letter *mailbox.Letter
		want   wire.Code
	}{
		"id changed":         {change(func(l *mailbox.Letter) { l.ID[0] ^= 1 }), wire.Unauthenticated},
		"expiry changed":     {change(func(l *mailbox.Letter) { l.Expires = l.Expires.Add(time.Second) }), wire.Unauthenticated},
		"recipient changed":  {change(func(l *mailbox.Letter) { l.Recipient = mallory.Agent }), wire.Unauthenticated},
		"bit flipped":        {change(func(l *mailbox.Letter) { l.Body[len(l.Body)-40] ^= 1 }), wire.Unauthenticated},
		"cut":                {change(func(l *mailbox.Letter) { l.Body = l.Body[:len(l.Body)/2] }), wire.Malformed},
		"empty":              {change(func(l *mailbox.Letter) { l.Body = nil }), wire.NotFound},
		"oversize":           {change(func(l *mailbox.Letter) { l.Body = make([]byte, mailbox.MaxBody+1) }), wire.TooLarge},
		"expired":            {change(func(l *mailbox.Letter) { l.Expires = noon }), wire.Replayed},
		"sender forged":      {forged(func(c *mailboxpb.Content) { c.Certificate = a.Cert.Raw }, mallory.Host), wire.Unauthenticated},
		"not signed as one":  {forged(func(c *mailboxpb.Content) {}, a.Host), wire.Unauthenticated},
		"passed on":          {passed, wire.Unauthenticated},
		"another id signed":  {forged(func(c *mailboxpb.Content) { c.Id = make([]byte, 16) }, mallory.Host), wire.Unauthenticated},
		"of tomorrow":        {forged(func(c *mailboxpb.Content) { c.Created = noon.Add(time.Hour).Unix() }, mallory.Host), wire.Unauthenticated},
		"of last month":      {forged(func(c *mailboxpb.Content) { c.Created = noon.Add(-30 * 24 * time.Hour).Unix() }, mallory.Host), wire.Unauthenticated},
		"before certificate": {forged(func(c *mailboxpb.Content) { c.Created = noon.Add(-2 * time.Hour).Unix() }, mallory.Host), wire.KeyExpired},
		"expired key":        {forged(func(c *mailboxpb.Content) { c.Certificate = old.Cert.Raw }, old.Host), wire.KeyExpired},
		"another realm":      {forged(func(c *mailboxpb.Content) { c.Certificate = foreign.Certificate.Raw }, foreign.Host), wire.Denied},
		"no certificate":     {forged(func(c *mailboxpb.Content) { c.Certificate = nil }, mallory.Host), wire.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if from, payload, err := mailbox.Open(b.Recipient(at(noon)), test.letter, noon); !errors.Is(err, test.want) || payload != nil {
				t.Errorf("Open() = %v, %q, %v; want %v", from, payload, err, test.want)
			}
		})
	}
	if _, _, err := mailbox.Open(b.Recipient(at(noon)), forged(func(*mailboxpb.Content) {}, mallory.Host), noon); err != nil {
		t.Errorf("the forgery does nothing by itself, but: %v", err)
	}
}

// Signatures of another domain or kind are none of ours.
func TestOtherDomain(t *testing.T) {
	t.Parallel()
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	for i, d := range [][2]string{{"openmesh-agent-record", "/openmesh/mailbox-letter/v1"}, {"openmesh-mailbox-letter", "/openmesh/agent-record/v1"}} {
		l := &mailbox.Letter{Recipient: b.Agent, ID: mailbox.NewID(), Expires: noon.Add(time.Hour)}
		c := &mailboxpb.Content{Recipient: string(l.Recipient), Id: l.ID[:], Created: noon.Unix(), Expires: l.Expires.Unix(), Certificate: a.Cert.Raw}
		mailboxtest.Wrap(t, l, b.Cert, mailboxtest.Sign(t, c, a.Host, d[0], d[1]))
		if _, _, err := mailbox.Open(b.Recipient(at(noon)), l, noon); err == nil {
			t.Errorf("%d: no error", i)
		}
	}
}

// decrypt returns the envelope of a letter to a.
func decrypt(t testing.TB, a *mailboxtest.Identity, l *mailbox.Letter) []byte {
	t.Helper()
	var sealed mailboxpb.Sealed
	if err := proto.Unmarshal(l.Body, &sealed); err != nil {
		t.Fatal(err)
	}
	r, err := hpke.NewRecipient(sealed.Enc, a.Boxes[sealed.KeyVersion], hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("openmesh/mailbox/v1"))
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err := r.Open(mailboxtest.AAD(l, sealed.KeyVersion), sealed.Ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	n, start := binary.Uvarint(plaintext)
	return plaintext[start:][:n]
}

func FuzzOpen(f *testing.F) {
	a, b := mailboxtest.NewIdentity(f, noon), mailboxtest.NewIdentity(f, noon)
	good := letter(f, a, b, []byte("hello"))
	f.Add(good.Body, []byte("x"))
	f.Add([]byte{}, decrypt(f, b, good))
	r := b.Recipient(at(noon))
	f.Fuzz(func(t *testing.T, body, envelope []byte) {
		l := *good
		l.Body = body
		if _, payload, err := mailbox.Open(r, &l, noon); err == nil && string(payload) != "hello" {
			t.Errorf("a body that nobody sealed opens: %q", payload)
		}
		mailboxtest.Wrap(t, &l, b.Cert, envelope) // reaches what is inside
		if _, payload, err := mailbox.Open(r, &l, noon); err == nil && string(payload) != "hello" {
			t.Errorf("an envelope that nobody signed opens: %q", payload)
		}
	})
}
