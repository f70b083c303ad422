package session

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/session/limit"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// conduct is how the two sides keep to the rates of their contract. It is there
// only if there are rates.
type conduct struct {
	mu     sync.Mutex
	meter  limit.Meter // of the peer
	pacer  limit.Pacer // of this side
	next   time.Time   // nothing is sent by those who must not wait before
	waking bool        // a timer will go on with the outbox
}

// Notice is a word about the conduct of one side.
type Notice struct {
	Sent   bool   // by this side, about the peer
	Effect string // pass, warn, throttle or terminate
	Reason string
	At     time.Time
}

const (
	maxNotices = 8
	maxReason  = 200 // bytes
)

func newConduct(c signal.Contract) *conduct {
	terms := limit.Terms{
		MessagesPerSecond: float64(c.MessageRate), BytesPerSecond: float64(c.ByteRate), MaxMessageBytes: c.MaxMessageBytes + maxMeta,
	}
	return &conduct{meter: limit.NewMeter(terms), pacer: limit.NewPacer(terms)}
}

func rated(c signal.Contract) bool { return c.MessageRate > 0 || c.ByteRate > 0 }

// metered reports whether a frame counts as a message of the contract's rates.
func metered(t seal.Type) bool {
	switch t {
	case seal.Data, seal.Request, seal.Response, seal.StreamOpen, seal.StreamData:
		return true
	}
	return false
}

// measure holds the peer to the contract: a frame of n bytes has come from it. It
// holds back the reading while the peer is too fast, and ends the session if that
// does not help.
func (s *Session) measure(n int, now time.Time) error {
	c := s.conduct.Load()
	c.mu.Lock()
	v := c.meter.Take(now, 1, n)
	c.mu.Unlock()
	if v.Notify {
		s.notify(v, now)
	}
	switch {
	case v.Effect == limit.Terminate:
		return broken{code: wire.ResourceExhausted}
	case v.Delay > 0:
		s.pause(min(v.Delay, s.terms.Load().Keepalive/8)) // the rest comes with the next frame
	}
	return nil
}

// notify tells the peer what is done about its conduct.
func (s *Session) notify(v limit.Verdict, now time.Time) {
	s.offer(s.link.opener(), seal.PolicyNotice, &sessionpb.Notice{
		Effect: sessionpb.Notice_Effect(v.Effect), Code: uint32(wire.ResourceExhausted), Reason: v.Reason,
	}, true)
	s.note(Notice{true, effectName(sessionpb.Notice_Effect(v.Effect)), v.Reason, now})
}

// noticed takes a word of the peer about this side's conduct.
func (s *Session) noticed(plain []byte, now time.Time) error {
	m := new(sessionpb.Notice)
	if err := unmarshal(plain, m); err != nil {
		return err
	}
	s.note(Notice{false, effectName(m.Effect), m.Reason[:min(len(m.Reason), maxReason)], now})
	return nil
}

// note remembers a notice. The peer must not fill the log with its own.
func (s *Session) note(n Notice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.notices) - 1
	if n.Sent || last < 0 || s.notices[last].Effect != n.Effect && n.At.Sub(s.notices[last].At) > time.Second {
		s.owner.cfg.Log.Warn("policy notice", zap.Stringer("session", s.id), zap.String("agent", string(s.Peer().Agent)),
			zap.Bool("sent", n.Sent), zap.String("effect", n.Effect), zap.String("reason", n.Reason))
	}
	s.notices = append(s.notices, n)
	s.notices = s.notices[max(0, len(s.notices)-maxNotices):]
}

func effectName(e sessionpb.Notice_Effect) string {
	switch e {
	case 0:
		return "pass" // all is well again
	case sessionpb.Notice_EFFECT_WARN:
		return "warn"
	case sessionpb.Notice_EFFECT_THROTTLE:
		return "throttle"
	case sessionpb.Notice_EFFECT_TERMINATE:
		return "terminate"
	}
	return "unknown"
}

// pace waits until this side may send a frame of type t and n bytes.
func (s *Session) pace(t seal.Type, n int) {
	c := s.conduct.Load()
	if c == nil || !metered(t) {
		return
	}
	c.mu.Lock()
	d := c.pacer.Reserve(time.Now(), 1, n)
	c.mu.Unlock()
	if d > 0 {
		s.pause(d)
	}
}

// may reports whether the outbox may send a message of n bytes now; if not, it is
// told when it may.
func (s *Session) may(n int) bool {
	c := s.conduct.Load()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.next) {
		if !c.waking {
			c.waking = true
			time.AfterFunc(c.next.Sub(now), s.goOn)
		}
		return false
	}
	c.next = now.Add(c.pacer.Reserve(now, 1, n))
	return true
}

func (s *Session) goOn() {
	c := s.conduct.Load()
	c.mu.Lock()
	c.waking = false
	c.mu.Unlock()
	s.owner.start(func() { s.mail.out.Due(time.Now()) })
}
