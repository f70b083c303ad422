package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"openmesh/node/store"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	// MaxCheckpoint bounds a checkpoint as text, in bytes.
	MaxCheckpoint = 4 << 10
	origin        = "openmesh/audit/" // then the agent id

	insertCheckpoint  = `INSERT INTO audit_checkpoints (owner, size, at, text) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	selectCheckpoints = `SELECT text FROM audit_checkpoints WHERE owner = $1 ORDER BY size, at`
	selectSizes       = `SELECT DISTINCT size FROM audit_checkpoints WHERE owner = $1 AND size > $2 AND size < $3 ORDER BY size`
	selectNewest      = `SELECT text FROM audit_checkpoints WHERE owner = $1 ORDER BY size DESC, at DESC LIMIT 1`
)

// Checkpoint is an agent's signed word on what its log was: so many entries with
// this root. As text it is a signed note (https://c2sp.org/signed-note) whose body
// is a checkpoint (https://c2sp.org/tlog-checkpoint) with two lines of extension:
//
//	openmesh/audit/did:key:z6Mk…       the log: whose it is
//	1042                               entries
//	CsUYapGGPo4dkMgIAUqom/Xajj7h2fB…   root hash, base64
//	time 1767225600000                 when, in milliseconds since 1970
//	certificate CtYL…                  the agent's key certificate, base64
//
//	— openmesh/audit/did:key:z6Mk… …   Ed25519 by the host key of that certificate
//
// So it can be checked with nothing else at hand.
type Checkpoint struct {
	Agent       identity.AgentID
	Size        uint64
	Root        Hash
	At          time.Time // UTC, milliseconds
	Certificate *identity.Certificate

	raw []byte
}

// Bytes is the checkpoint as text, at most 4 KiB.
func (c *Checkpoint) Bytes() []byte { return bytes.Clone(c.raw) }

// String is the checkpoint as text.
func (c *Checkpoint) String() string { return string(c.raw) }

// Digest is the SHA-256 of the text.
func (c *Checkpoint) Digest() [sha256.Size]byte { return sha256.Sum256(c.raw) }

// Checkpoint signs the log as it is in the database, and stores the checkpoint
// before it returns: this agent, too, will compare with it. With a certificate that
// has expired it signs nothing: the error is [wire.KeyExpired].
func (l *Log) Checkpoint(ctx context.Context) (*Checkpoint, error) {
	l.mu.Lock()
	t := l.committed
	l.mu.Unlock()
	key, cert := l.cfg.Signer()
	if same, err := l.newest(ctx); err != nil {
		return nil, fmt.Errorf("make a checkpoint: %w", err)
	} else if same != nil && same.Size == t.size && same.Root == t.root() && bytes.Equal(same.Certificate.Raw, cert.Raw) {
		return same, nil
	}
	var b store.Batch
	c, err := l.sign(&b, t, key, cert)
	if err != nil {
		return nil, err
	}
	if _, err := l.db.Exec(ctx, "make a checkpoint", &b); err != nil {
		return nil, err
	}
	return c, nil
}

// Promise signs the log as it is in the database, and adds to b that the checkpoint
// is stored. Nobody may be given it before b is committed: so what is signed with it
// needs no transaction more than its own. Errors are those of Checkpoint.
func (l *Log) Promise(b *store.Batch) (*Checkpoint, error) {
	l.mu.Lock()
	t := l.committed
	l.mu.Unlock()
	key, cert := l.cfg.Signer()
	return l.sign(b, t, key, cert)
}

func (l *Log) sign(b *store.Batch, t tree, key crypto.PrivKey, cert *identity.Certificate) (*Checkpoint, error) {
	c := &Checkpoint{Agent: l.cfg.Agent, Size: t.size, Root: t.root(), At: time.Now().UTC().Truncate(time.Millisecond), Certificate: cert}
	if err := cert.Valid(c.At); err != nil {
		return nil, wire.Errorf(wire.KeyExpired, "make a checkpoint: %w", err).WithHint("make a new certificate with: openmesh key rotate")
	}
	if err := c.sign(key); err != nil {
		return nil, fmt.Errorf("make a checkpoint: %w", err)
	}
	b.Add(insertCheckpoint, l.db.Owner(), int64(c.Size), c.At.UnixMilli(), c.raw)
	return c, nil
}

// newest is the checkpoint over most entries; nil if there is none, or if it was
// tampered with.
func (l *Log) newest(ctx context.Context) (*Checkpoint, error) {
	var text []byte
	err := l.db.Query(ctx, "read checkpoints", func(rows *sql.Rows) error { return rows.Scan(&text) }, selectNewest, l.db.Owner())
	if err != nil || text == nil {
		return nil, err
	}
	c, err := ParseCheckpoint(text)
	if err != nil {
		return nil, nil
	}
	return c, nil
}

// sizes are those of the checkpoints over more entries than from and less than to.
func (l *Log) sizes(ctx context.Context, from, to uint64) (sizes []uint64, err error) {
	err = l.db.Query(ctx, "read checkpoints", func(rows *sql.Rows) error {
		var size int64
		err := rows.Scan(&size)
		sizes = append(sizes, uint64(size))
		return err
	}, selectSizes, l.db.Owner(), position(from), position(to))
	return sizes, err
}

func (c *Checkpoint) sign(key crypto.PrivKey) error {
	text := fmt.Sprintf("%s%s\n%d\n%s\ntime %d\ncertificate %s\n", origin, c.Agent, c.Size, c.Root, c.At.UnixMilli(),
		base64.StdEncoding.EncodeToString(c.Certificate.Raw))
	raw, err := note.Sign(&note.Note{Text: text}, signer{verifier{c.Certificate}, key})
	if err != nil {
		return err
	}
	if len(raw) > MaxCheckpoint {
		return wire.Errorf(wire.TooLarge, "checkpoint of %d bytes, at most %d", len(raw), MaxCheckpoint)
	}
	c.raw = raw
	return nil
}

// ParseCheckpoint reads a checkpoint and verifies all that it says of itself: the
// certificate, that it was valid at the time, and the signature by its key. The
// errors are [wire.Malformed], [wire.TooLarge], [wire.KeyExpired] and
// [wire.Unauthenticated].
func ParseCheckpoint(raw []byte) (*Checkpoint, error) {
	return ParseCheckpointBy(raw, identity.ParseCertificate)
}

// ParseCheckpointBy is ParseCheckpoint for who has another way to parse certificates,
// which need not verify again what it has verified before.
func ParseCheckpointBy(raw []byte, certificate func(raw []byte) (*identity.Certificate, error)) (*Checkpoint, error) {
	c, err := parseUndated(raw, certificate)
	if err != nil {
		return nil, err
	}
	if err := c.Certificate.Valid(c.At); err != nil {
		return nil, err
	}
	return c, nil
}

// parseUndated is ParseCheckpointBy save that the certificate need not have been
// valid at the time.
func parseUndated(raw []byte, certificate func(raw []byte) (*identity.Certificate, error)) (*Checkpoint, error) {
	if len(raw) > MaxCheckpoint {
		return nil, wire.Errorf(wire.TooLarge, "checkpoint of %d bytes, at most %d", len(raw), MaxCheckpoint)
	}
	body, _, ok := strings.Cut(string(raw), "\n\n")
	lines := strings.Split(body, "\n")
	if !ok || len(lines) != 5 || !strings.HasPrefix(lines[0], origin) {
		return nil, wire.Errorf(wire.Malformed, "this is no checkpoint of an audit log")
	}
	c, err := parseBody(lines, certificate)
	if err != nil {
		return nil, err
	}
	if c.Certificate.Agent != c.Agent {
		return nil, wire.Errorf(wire.Unauthenticated, "checkpoint of the log of %s has the certificate of %s", c.Agent, c.Certificate.Agent)
	}
	n, err := note.Open(raw, note.VerifierList(verifier{c.Certificate}))
	if err != nil {
		return nil, wire.Errorf(wire.Unauthenticated, "checkpoint of the log of %s: its signature does not hold", c.Agent)
	}
	if again, err := c.text(n); err != nil || !bytes.Equal(again, raw) {
		return nil, wire.Errorf(wire.Malformed, "checkpoint of the log of %s: it is written in another way than it was signed", c.Agent)
	}
	c.raw = bytes.Clone(raw)
	return c, nil
}

// text is a note with its first signature, in the one way to write it.
func (c *Checkpoint) text(n *note.Note) ([]byte, error) {
	sig, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	return fmt.Appendf(nil, "%s\n\u2014 %s%s %s\n", n.Text, origin, c.Agent, base64.StdEncoding.EncodeToString(sig)), err
}

// parseBody reads the lines before the signature.
func parseBody(lines []string, certificate func([]byte) (*identity.Certificate, error)) (*Checkpoint, error) {
	bad := func(what string) (*Checkpoint, error) {
		return nil, wire.Errorf(wire.Malformed, "checkpoint: %s", what)
	}
	c := &Checkpoint{Agent: identity.AgentID(strings.TrimPrefix(lines[0], origin))}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || size > math.MaxInt64 || strconv.FormatUint(size, 10) != lines[1] {
		return bad("size")
	}
	c.Size = size
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil || c.Root.String() != lines[2] {
		return bad("root hash")
	}
	stamp, found := strings.CutPrefix(lines[3], "time ")
	ms, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || !found || ms < 0 || strconv.FormatInt(ms, 10) != stamp {
		return bad("time")
	}
	c.At = time.UnixMilli(ms).UTC()
	text, found := strings.CutPrefix(lines[4], "certificate ")
	cert, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || !found {
		return bad("certificate")
	}
	c.Certificate, err = certificate(cert)
	return c, err
}

// verifier checks notes by the host key of a certificate, as note wants it.
type verifier struct{ cert *identity.Certificate }

// Name implements [note.Verifier].
func (v verifier) Name() string { return origin + string(v.cert.Agent) }

// KeyHash implements [note.Verifier]: the first bytes of
// SHA-256(name ‖ newline ‖ 1 ‖ key), where 1 stands for Ed25519.
func (v verifier) KeyHash() uint32 {
	key, err := v.cert.HostKey().Raw()
	if err != nil {
		return 0
	}
	h := sha256.Sum256(append([]byte(v.Name()+"\n\x01"), key...))
	return binary.BigEndian.Uint32(h[:4])
}

// Verify implements [note.Verifier].
func (v verifier) Verify(msg, sig []byte) bool {
	ok, err := v.cert.HostKey().Verify(msg, sig)
	return ok && err == nil
}

// signer signs notes by a host key.
type signer struct {
	verifier
	key crypto.PrivKey
}

// Sign implements [note.Signer].
func (s signer) Sign(msg []byte) ([]byte, error) { return s.key.Sign(msg) }
