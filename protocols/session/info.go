package session

import (
	"strings"
	"sync/atomic"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Info describes a session at one moment.
type Info struct {
	ID             signal.ID
	Peer           *identity.Certificate
	Initiator      bool
	State          State
	Reason         wire.Code // why it was terminated
	Suite          signal.Suite
	Contract       signal.Contract
	Protocols      []signal.AppProtocol
	Epoch          uint32
	Channels       []ChannelInfo // the one in use first
	Pending        int           // requests and messages under way, both ways
	Outbox         int           // messages accepted and without outcome
	Sent, Received uint64        // frames
	Rejected       uint64        // frames dropped
	Opened         time.Time
	IdleAt         time.Time // when it will be closed if nobody uses it
	History        []Event
	Notices        []Notice // about conduct, most recent last
}

// ChannelInfo describes a channel of a session.
type ChannelInfo struct {
	Path   Path
	RTT    time.Duration // smoothed; 0 while unknown
	Loss   float64       // share of recent pings without answer
	Opened time.Time
}

// Info returns the session as it is now.
func (s *Session) Info() Info {
	ends := s.ends.Load()
	i := Info{
		ID: s.id, Peer: ends.peer, Initiator: s.opener, Suite: ends.suite, Contract: s.Contract(), Protocols: ends.protocols,
		Channels: s.channels(), Outbox: s.mail.out.Pending(),
		Sent: s.counters.sent.Load(), Received: s.counters.received.Load(), Rejected: s.counters.rejected.Load(),
		Opened: s.opened, IdleAt: time.Unix(0, s.counters.used.Load()).Add(s.unusedLimit()),
	}
	i.Pending = s.calls.len() + s.inbox.len() + i.Outbox + s.mail.in.Busy()
	if keys := s.link.opener(); keys != nil {
		i.Epoch = keys.Epoch()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i.State, i.Reason, i.History = s.state, s.reason, append([]Event(nil), s.history...)
	i.Notices = append([]Notice(nil), s.notices...)
	return i
}

func (s *Session) channels() []ChannelInfo {
	var infos []ChannelInfo
	current := s.link.current.Load()
	for _, ch := range s.link.all() {
		rtt, loss := ch.health.read()
		info := ChannelInfo{ch.path, rtt, loss, ch.opened}
		if ch == current {
			infos = append([]ChannelInfo{info}, infos...)
		} else {
			infos = append(infos, info)
		}
	}
	return infos
}

// Sessions returns the sessions there are, newest first; with ended, also those
// that ended, as far back as the endpoint remembers.
func (e *Endpoint) Sessions(ended bool) []Info {
	var infos []Info
	for _, s := range e.list() {
		infos = append(infos, s.Info())
	}
	if ended {
		e.mu.Lock()
		defer e.mu.Unlock()
		for i := len(e.ended) - 1; i >= 0; i-- {
			infos = append(infos, e.ended[i])
		}
	}
	return infos
}

// Find returns the session whose id starts with prefix, or nil if it has ended.
// Errors: wire.NotFound, wire.InvalidArgument if several match.
func (e *Endpoint) Find(prefix string) (*Session, Info, error) {
	var found []Info
	for _, i := range e.Sessions(true) {
		if prefix != "" && strings.HasPrefix(i.ID.String(), strings.ToLower(prefix)) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 0:
		return nil, Info{}, wire.Errorf(wire.NotFound, "no session %.40q", prefix).WithHint("list them with: openmesh session list --all")
	case len(found) > 1:
		return nil, Info{}, wire.Errorf(wire.InvalidArgument, "session %.40q is ambiguous: %d sessions match", prefix, len(found)).WithHint("give more digits")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sessions[found[0].ID], found[0], nil
}

// Stats are totals since the endpoint was made.
type Stats struct {
	Sent, Received map[string]uint64 // bytes of frames by kind of path
	Served         uint64            // requests answered with a response
	Failed         uint64            // requests answered with an error
	Refused        uint64            // requests not taken
	Channels       int               // open now
	Paths          map[string]int    // sessions with a channel, by kind of path
}

// stats counts without locks or look-ups, for it is on the path of every frame.
type stats struct {
	direct, holepunched, relayed, forwarded bytesCounter
	served, failed, refused                 atomic.Uint64
}

type bytesCounter struct{ out, in atomic.Uint64 }

func (s *stats) by(kind string) *bytesCounter {
	switch kind {
	case "relayed":
		return &s.relayed
	case "holepunched":
		return &s.holepunched
	case "forwarded":
		return &s.forwarded
	}
	return &s.direct
}

func (s *stats) sent(kind string, n int)     { s.by(kind).out.Add(uint64(n)) }
func (s *stats) received(kind string, n int) { s.by(kind).in.Add(uint64(n)) }

// Stats returns the endpoint's totals.
func (e *Endpoint) Stats() Stats {
	st := Stats{
		Sent: map[string]uint64{}, Received: map[string]uint64{},
		Served: e.stats.served.Load(), Failed: e.stats.failed.Load(), Refused: e.stats.refused.Load(),
		Channels: int(e.channels.Load()),
	}
	for _, kind := range []string{"direct", "holepunched", "relayed", "forwarded"} {
		c := e.stats.by(kind)
		st.Sent[kind], st.Received[kind] = c.out.Load(), c.in.Load()
	}
	st.Paths = make(map[string]int)
	e.each(func(s *Session) {
		if s.link.current.Load() != nil {
			st.Paths[s.path.Load().Kind]++
		}
	})
	return st
}
