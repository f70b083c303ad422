package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// A multicast session is a list of sessions, one with each recipient, that are
// sent to together. It has an id of its own, and is this node's alone: to its
// recipients each of them is a session like any other.
type multicast struct {
	ID       string    `json:"id"` // 32 hex digits
	Opened   time.Time `json:"opened"`
	Sessions []string  `json:"sessions"` // ids, in the order of the targets
	Agents   []string  `json:"agents"`
}

// recipient is one session of a multicast session, or a session by itself.
type recipient struct{ id, agent string }

// multicasts are the multicast sessions of this node, by id.
type multicasts struct {
	mu  sync.Mutex
	all map[string]multicast
}

// multicastBucket holds the persistent ones in the store.
const multicastBucket = "multicast"

// openMulticast opens a session with every target. If one fails, none is left.
func (n sessionAPI) openMulticast(ctx context.Context, r *openmeshv1.OpenSessionRequest, w session.Want) (*openmeshv1.SessionInfo, error) {
	if r.Via != "" {
		return nil, wire.Errorf(wire.InvalidArgument, "open session: via is of one target only")
	}
	opened := make([]*session.Session, len(r.Targets))
	errs := make([]error, len(r.Targets))
	var all sync.WaitGroup
	for i, target := range r.Targets {
		all.Go(func() { opened[i], errs[i] = n.openTarget(ctx, target, r, w) })
	}
	all.Wait()
	for i, err := range errs {
		if err == nil {
			continue
		}
		for _, s := range opened {
			if s != nil {
				s.Terminate(wire.Cancelled)
			}
		}
		return nil, fmt.Errorf("open session with %s: %w", r.Targets[i], err)
	}
	return n.keepMulticast(ctx, opened)
}

func (n sessionAPI) keepMulticast(ctx context.Context, opened []*session.Session) (*openmeshv1.SessionInfo, error) {
	var id [16]byte
	rand.Read(id[:])
	m := multicast{ID: hex.EncodeToString(id[:]), Opened: time.Now()}
	for _, s := range opened {
		m.Sessions, m.Agents = append(m.Sessions, s.ID().String()), append(m.Agents, string(s.Peer().Agent))
	}
	if opened[0].Contract().Persistent {
		b, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("store multicast session: %w", err)
		}
		if err := n.database.Put(ctx, multicastBucket, m.ID, b); err != nil {
			return nil, fmt.Errorf("store multicast session: %w", err)
		}
	}
	n.multicasts.mu.Lock()
	defer n.multicasts.mu.Unlock()
	n.multicasts.all[m.ID] = m
	return n.multicastMessage(m, true), nil
}

func newMulticasts() *multicasts { return &multicasts{all: make(map[string]multicast)} }

// loadMulticasts brings back the persistent multicast sessions.
func (n *Node) loadMulticasts(ctx context.Context) error {
	stored, err := n.database.List(ctx, multicastBucket)
	if err != nil {
		return fmt.Errorf("restore multicast sessions: %w", err)
	}
	n.multicasts.mu.Lock()
	defer n.multicasts.mu.Unlock()
	for id, b := range stored {
		var m multicast
		if err := json.Unmarshal(b, &m); err != nil || len(m.Sessions) != len(m.Agents) {
			n.log.Error("multicast session not restored", zap.String("session", id), zap.Error(err))
			continue
		}
		n.multicasts.all[id] = m
	}
	return nil
}

// recipients are whom a session's messages go to; prefix is the id of a session or
// multicast session, or its beginning.
func (n *Node) recipients(prefix string) ([]recipient, error) {
	m, ok := n.multicast(prefix)
	if !ok {
		s, info, err := n.sessions.Find(prefix)
		if err != nil {
			return nil, err
		}
		if s == nil {
			return nil, wire.Errorf(wire.SessionClosed, "session %s is %s", info.ID, info.State).
				WithHint("open another one with: openmesh session open %s", info.Peer.Agent)
		}
		return []recipient{{info.ID.String(), string(info.Peer.Agent)}}, nil
	}
	var all []recipient
	for i, id := range m.Sessions {
		all = append(all, recipient{id, m.Agents[i]})
	}
	return all, nil
}

// multicast finds a multicast session by the beginning of its id.
func (n *Node) multicast(prefix string) (multicast, bool) {
	n.multicasts.mu.Lock()
	defer n.multicasts.mu.Unlock()
	var found []multicast
	for id, m := range n.multicasts.all {
		if prefix != "" && strings.HasPrefix(id, strings.ToLower(prefix)) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return multicast{}, false
	}
	return found[0], true
}

// closeMulticast closes the sessions of a multicast session, and forgets it.
func (n *Node) closeMulticast(ctx context.Context, m multicast, terminate bool) error {
	var all sync.WaitGroup
	for _, id := range m.Sessions {
		s, _, err := n.sessions.Find(id)
		if err != nil || s == nil {
			continue
		}
		all.Go(func() {
			if terminate {
				s.Terminate(wire.Cancelled)
			} else {
				s.Close(ctx)
			}
		})
	}
	all.Wait()
	n.multicasts.mu.Lock()
	delete(n.multicasts.all, m.ID)
	n.multicasts.mu.Unlock()
	return n.database.Delete(ctx, multicastBucket, m.ID)
}

// multicastMessage is a multicast session as the API shows it: with members only
// when it is shown by itself.
func (n *Node) multicastMessage(m multicast, members bool) *openmeshv1.SessionInfo {
	info := &openmeshv1.SessionInfo{
		Session: m.ID, Kind: "multicast", State: "closed", Opened: stamp(m.Opened), Role: "initiator", Channels: []*openmeshv1.Channel{},
	}
	for _, id := range m.Sessions {
		_, i, err := n.sessions.Find(id)
		if err != nil {
			continue
		}
		member := n.sessionMessage(i)
		if info.Qos == "" {
			info.Qos, info.Persistent, info.State, info.Suite = member.Qos, member.Persistent, member.State, member.Suite
		}
		info.Unacked += member.Unacked
		info.Sent, info.Received = info.Sent+member.Sent, info.Received+member.Received
		if members {
			info.Members = append(info.Members, member)
		}
	}
	return info
}

// multicastList lists the multicast sessions, newest first.
func (n *Node) multicastList() []*openmeshv1.SessionInfo {
	n.multicasts.mu.Lock()
	all := make([]multicast, 0, len(n.multicasts.all))
	for _, m := range n.multicasts.all {
		all = append(all, m)
	}
	n.multicasts.mu.Unlock()
	slices.SortFunc(all, func(a, b multicast) int { return b.Opened.Compare(a.Opened) })
	var infos []*openmeshv1.SessionInfo
	for _, m := range all {
		infos = append(infos, n.multicastMessage(m, false))
	}
	return infos
}
