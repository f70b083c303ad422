// Package keys keeps an agent's identity in its home directory.
//
//	$OPENMESH_HOME/keys/            0700; made whole under another name, then renamed
//	    root.key                    the root key, sealed under a passphrase
//	    current                     version in use, decimal; replaced by rename
//	    <version>/                  one directory for each key version, never changed once named
//	        host.key                libp2p-marshalled Ed25519 private key
//	        mailbox.key             HPKE private key of identity.MailboxKEM (RFC 9180)
//	        certificate             signed envelope that binds the two to the root key
//	$OPENMESH_HOME/keys.lock        serialises those who change keys/
//
// Files are 0600 and synced before a rename makes them count, so a crash leaves
// the old state or the new one. The daemon needs no passphrase: the root key
// is opened only to sign a certificate.
//
// A sealed file (root.key, and a backup) is 108 bytes, integers big-endian:
//
//	 0  8  "openmesh"
//	 8  1  format: 1
//	 9  4  Argon2id passes      ≤ 16        RFC 9106; written: 3
//	13  4  Argon2id memory, KiB ≤ 262144                  65536
//	17  1  Argon2id lanes       ≤ 16                      4
//	18 16  salt
//	34 12  nonce
//	46 62  box: AES-256-GCM of the 46 bytes below, bytes 0–33 as associated data
//
//	 0 32  Ed25519 seed of the root key
//	32  2  realm
//	34  8  nonce of the address puzzle
//	42  4  newest certificate version when sealed
//
// Versions are seconds since 2020-01-01 UTC at the time of issue, or the last
// version + 1 if that is more. So an identity restored from an old backup gets
// a version above all that the lost machine issued since, as far as the two
// clocks agree.
//
// Passphrases stay the caller's, who clears them. Secrets that this package
// makes or reads are cleared after use; the returned keys cannot be.
package keys

import (
	"context"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"io"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// DefaultValidity is how long a certificate is valid unless asked otherwise:
// two of the default rotation intervals.
const DefaultValidity = 28 * 24 * time.Hour

// mailboxGrace is how long a mailbox key outlives its certificate: the longest
// that a sealed message may wait in a mailbox.
const mailboxGrace = 7 * 24 * time.Hour

// Keys is what a running node needs of its identity: everything but the root
// key. Host and Mailbox are secret.
type Keys struct {
	Agent       identity.AgentID
	Address     identity.Address
	Peer        peer.ID
	Host        crypto.PrivKey
	Mailbox     hpke.PrivateKey
	Certificate *identity.Certificate
}

// InitOptions are the terms of a new identity.
type InitOptions struct {
	Realm      identity.Realm
	Passphrase []byte        // seals the root key; not empty
	Validity   time.Duration // of the first certificate; 0 means DefaultValidity
	Now        time.Time
	Progress   func() // called once, when the search for an address begins; may be nil
}

// Init makes a new identity in home, which it creates if need be. After an
// error or a crash there is either none or a whole one. Errors:
// wire.AlreadyExists if home has an identity, wire.InvalidArgument.
func Init(ctx context.Context, home string, o InitOptions) (*Keys, error) {
	return store{home: home, cost: standard}.create(ctx, o)
}

// Open reads the identity in home and checks that certificate, host key and
// mailbox key belong together. It needs no passphrase, and does not look at the
// certificate's validity. Errors: wire.NotFound if there is no identity,
// wire.Denied if others can read the files, wire.Malformed,
// wire.Unauthenticated.
func Open(home string) (*Keys, error) {
	return store{home: home}.open()
}

// Rotate makes a new host key and mailbox key, certified for validity (0 means
// DefaultValidity) from now, and makes them current. The superseded host
// key is erased; its mailbox key stays for [Mailboxes]. Errors: wire.Denied for
// a wrong passphrase, wire.NotFound, wire.InvalidArgument.
func Rotate(home string, passphrase []byte, validity time.Duration, now time.Time) (*Keys, error) {
	return store{home: home, cost: standard}.rotate(passphrase, validity, now)
}

// Mailboxes returns the mailbox keys by version: the current one and those that
// messages still under way may be sealed to.
func Mailboxes(home string) (map[uint32]hpke.PrivateKey, error) {
	return store{home: home}.mailboxes()
}

// Backup writes the identity to w, sealed under backupPassphrase. It writes
// nothing unless what it is about to write opens again. Errors: wire.Denied if
// passphrase does not open the root key, wire.NotFound, wire.InvalidArgument.
func Backup(home string, passphrase, backupPassphrase []byte, w io.Writer) error {
	return store{home: home, cost: standard}.backup(passphrase, backupPassphrase, w)
}

// Restore puts a backed-up identity into home: the same agent and address, new
// host and mailbox keys, and a certificate that supersedes earlier ones. The
// root key is sealed under passphrase. Errors: wire.AlreadyExists,
// wire.Denied if backupPassphrase is wrong, wire.Malformed, wire.InvalidArgument.
func Restore(ctx context.Context, home string, r io.Reader, backupPassphrase, passphrase []byte, now time.Time) (*Keys, error) {
	return store{home: home, cost: standard}.restore(ctx, r, backupPassphrase, passphrase, now)
}

// A Report tells how an identity stands.
type Report struct {
	Agent               identity.AgentID
	Address             identity.Address
	Peer                peer.ID
	Version             uint32
	NotBefore, NotAfter time.Time
	State               string // valid, expiring, expired or not_yet_valid
	Root                string // sealed (in home) or absent
}

// expiring is how long before its end a certificate is said to expire: a
// rotation that was due has not happened.
const expiring = 7 * 24 * time.Hour

// Status reports on the identity in home at now. Errors are those of [Open].
func Status(home string, now time.Time) (Report, error) {
	s := store{home: home}
	k, err := s.open()
	if err != nil {
		return Report{}, err
	}
	c := k.Certificate
	r := Report{
		Agent: k.Agent, Address: k.Address, Peer: k.Peer, Version: c.Version,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, State: "valid", Root: s.root(),
	}
	switch {
	case !now.Before(c.NotAfter):
		r.State = "expired"
	case c.Valid(now) != nil:
		r.State = "not_yet_valid"
	case c.NotAfter.Sub(now) < expiring:
		r.State = "expiring"
	}
	return r, nil
}

// nextVersion returns the version of a certificate issued now, after last.
func nextVersion(last uint32, now time.Time) (uint32, error) {
	const epoch = 1577836800 // 2020-01-01T00:00:00Z
	v := max(int64(last)+1, now.Unix()-epoch)
	if v > math.MaxUint32 {
		return 0, wire.Errorf(wire.InvalidArgument, "no key version is left after %d at %s", last, now.Format(time.RFC3339)).
			WithHint("check the clock")
	}
	return uint32(v), nil
}

func checkPassphrase(what string, p []byte) error {
	if len(p) == 0 {
		return wire.Errorf(wire.InvalidArgument, "%s is empty", what).WithHint("choose one of several words")
	}
	return nil
}

// checkValidity returns d, or the default for 0.
func checkValidity(d time.Duration) (time.Duration, error) {
	if d == 0 {
		d = DefaultValidity
	}
	if d < time.Second || d > identity.MaxValidity {
		return 0, wire.Errorf(wire.InvalidArgument, "validity %s of a key certificate: want 1s to %s", d, identity.MaxValidity)
	}
	return d, nil
}

// issue makes a host key and a mailbox key and certifies them.
func issue(sec secret, validity time.Duration, now time.Time) (*Keys, error) {
	host, pub, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		return nil, err
	}
	mailbox, err := identity.MailboxKEM.GenerateKey()
	if err != nil {
		return nil, err
	}
	cert, err := identity.IssueCertificate(sec.root, identity.Certificate{
		Version: sec.version, Address: identity.Address{Realm: sec.realm}, Nonce: sec.nonce, Peer: id,
		NotBefore: now, NotAfter: now.Add(validity),
		MailboxKEM: identity.MailboxKEM.ID(), MailboxKey: mailbox.PublicKey().Bytes(),
	})
	if err != nil {
		return nil, err
	}
	return newKeys(cert, host, mailbox), nil
}

func newKeys(c *identity.Certificate, host crypto.PrivKey, mailbox hpke.PrivateKey) *Keys {
	return &Keys{Agent: c.Agent, Address: c.Address, Peer: c.Peer, Host: host, Mailbox: mailbox, Certificate: c}
}

// generateRoot makes a root key and finds its address.
func generateRoot(ctx context.Context, o InitOptions) (secret, error) {
	if o.Realm > identity.MaxRealm {
		return secret{}, wire.Errorf(wire.InvalidArgument, "realm %d: want 0 to %d", o.Realm, identity.MaxRealm)
	}
	pub, root, err := ed25519.GenerateKey(nil)
	if err != nil {
		return secret{}, err
	}
	if o.Progress != nil {
		o.Progress()
	}
	nonce, _, err := identity.SolveAddress(ctx, o.Realm, pub)
	if err != nil {
		clear(root)
		return secret{}, err
	}
	return secret{root: root, realm: o.Realm, nonce: nonce}, nil
}
