package node

import (
	"context"
	"crypto/hpke"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/node/keys"
	"openmesh/node/observe"
	"openmesh/node/store"
	"openmesh/node/store/letters"
	"openmesh/overlay/directory"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/collector"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// post is this agent's mail: what it leaves for others who are away, and its own
// mailboxes. Sessions say what the letters say.
type post struct {
	n         *Node
	boxes     *boxes
	depositor *mailbox.Depositor

	mu   sync.Mutex
	keys map[uint32]hpke.PrivateKey // by version of the key certificate
}

func newPost(n *Node) *post {
	p := &post{n: n, boxes: newBoxes()}
	p.depositor = mailbox.NewDepositor(p.deposited)
	return p
}

// maxBoxAddrs bounds the addresses that the directory has of one mailbox.
const maxBoxAddrs = 4

// Deposit leaves a letter of a session at the mailboxes of the agent it is to.
func (p *post) Deposit(ctx context.Context, to *identity.Certificate, l *session.Letter) error {
	a, err := p.recipient(ctx, to)
	if err != nil {
		return err
	}
	now := time.Now()
	from := mailbox.Sender{Host: p.n.cfg.Keys.Host, Certificate: p.n.cfg.Keys.Certificate}
	expires := l.Expires
	if latest := now.Add(mailbox.MaxTTL - time.Minute); expires.After(latest) {
		expires = latest
	}
	letter, err := mailbox.Seal(from, a.Certificate, l.Payload, now, expires)
	if err != nil {
		return err
	}
	if err := p.depositor.Deposit(ctx, p.n.host, boxesOf(a.Mailboxes), letter); err != nil {
		return fmt.Errorf("leave a letter for %s: %w", to.Agent, err)
	}
	p.n.metrics.Bytes(observe.Out, observe.Mailbox, len(l.Payload))
	return nil
}

// deposited hears what became of a letter at one relay.
func (p *post) deposited(r mailbox.Receipt) {
	p.n.metrics.Letter("deposited", r.Err)
	if r.Err != nil {
		p.n.log.Debug("letter not taken", zap.Stringer("relay", r.Relay), zap.Error(r.Err))
	}
}

// recipient finds the present certificate and the mailboxes of an agent. What is
// known may be of before it had any.
func (p *post) recipient(ctx context.Context, to *identity.Certificate) (a directory.Agent, err error) {
	for range 2 {
		if a, err = p.n.resolve(ctx, string(to.Agent)); err != nil {
			return a, err
		}
		if a.Certificate == nil || a.Certificate.Version < to.Version {
			a.Certificate = to
		}
		if len(a.Mailboxes) > 0 {
			return a, nil
		}
		p.n.directory.Doubt(a.ID, a.Peer.ID)
	}
	return a, wire.Errorf(wire.Unreachable, "%s is away and has no mailbox", to.Agent)
}

// boxesOf reads the mailboxes that an agent names: multiaddrs with /p2p/.
func boxesOf(names []string) []peer.AddrInfo {
	var addrs []ma.Multiaddr
	for _, s := range names {
		if a, err := ma.NewMultiaddr(s); err == nil {
			if _, id := peer.SplitAddr(a); id != "" {
				addrs = append(addrs, a)
			}
		}
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	if err != nil {
		return nil
	}
	return infos
}

// mailboxKey returns the private key that letters to a version of this agent's
// certificate are sealed to.
func (p *post) mailboxKey(version uint32) (hpke.PrivateKey, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.keys[version]; k != nil {
		return k, nil
	}
	all, err := keys.Mailboxes(p.n.cfg.Home)
	if err != nil {
		return nil, err
	}
	if p.keys = all; all[version] == nil {
		return nil, wire.Errorf(wire.NotFound, "mailbox key of version %d", version)
	}
	return all[version], nil
}

// collect takes in this agent's letters until ctx ends.
func (p *post) collect(ctx context.Context) error {
	n := p.n
	if err := p.boxes.load(ctx, n.database); err != nil && ctx.Err() == nil {
		n.log.Warn("not all mailboxes of this agent are known: letters may stay there", zap.Error(err))
	}
	me := mailbox.Recipient{Agent: n.cfg.Keys.Agent, Verifier: n.verifier, Mailbox: p.mailboxKey}
	c := collector.New(collector.Config{
		Dialer: n.host, Relays: p.wanted, Former: p.former, Certificate: func() *identity.Certificate { return n.cfg.Keys.Certificate },
		Open:       func(l *mailbox.Letter) (*identity.Certificate, []byte, error) { return mailbox.Open(me, l, time.Now()) },
		Deliver:    p.deliver,
		Registered: p.registered,
		Memory:     letterMemory{n.database},
		Log:        n.log.Named("mailbox"),
	})
	if err := c.Run(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

// deliver hands a letter to its session, which tells done what became of it.
func (p *post) deliver(ctx context.Context, from *identity.Certificate, payload []byte, _ mailbox.ID, done func(error)) {
	p.n.sessions.TakeLetter(ctx, from, payload, func(err error) {
		p.n.metrics.Letter("collected", err)
		if code := wire.CodeOf(err); err != nil && !code.Retry() && code != wire.Internal {
			err = &collector.Permanent{Err: err}
		}
		if err == nil {
			p.n.metrics.Bytes(observe.In, observe.Mailbox, len(payload))
			p.n.seen.add(from)
		}
		done(err)
	})
}

// letterMemory keeps which letters were delivered.
type letterMemory struct{ db *store.Store }

const (
	letterBucket = "mailbox"
	letterKey    = "delivered"
)

func (m letterMemory) Load(ctx context.Context) ([]byte, error) {
	b, err := m.db.Get(ctx, letterBucket, letterKey)
	if errors.Is(err, wire.NotFound) {
		return nil, nil
	}
	return b, err
}

func (m letterMemory) Save(ctx context.Context, document []byte) error {
	return m.db.Put(ctx, letterBucket, letterKey, document)
}

// newMailboxes returns the mailboxes that this node keeps for others, or nil.
func (n *Node) newMailboxes() *mailbox.Server {
	if !n.isRelay(serviceMailbox) {
		return nil
	}
	s := n.settings.Mailbox
	n.letters = letters.New(n.database)
	c := mailbox.ServerConfig{
		Store: n.letters, Verifier: n.verifier,
		Limits: mailbox.Limits{
			Letters: s.MaxMessages, Bytes: int64(s.MaxBytes), TTL: s.TTL, Recipients: s.MaxRecipients, Total: int64(s.MaxTotalBytes),
		},
		Observe: n.observeMailbox, Log: n.log.Named("mailbox"),
	}
	if n.settings.Storage.URL != "" { // other relays may share it
		c.Poll = time.Second
	}
	return mailbox.NewServer(c)
}

func (n *Node) observeMailbox(e mailbox.Event) {
	switch e.Kind {
	case mailbox.Deposited:
		n.metrics.MailboxEvent("deposited", e.Count)
	case mailbox.Refused:
		n.metrics.MailboxRefused(e.Code)
	case mailbox.Delivered:
		n.metrics.MailboxEvent("delivered", e.Count)
	case mailbox.Expired:
		n.metrics.MailboxEvent("expired", e.Count)
	case mailbox.Held:
		n.metrics.MailboxHeld(e.Count, e.Bytes)
	}
}
