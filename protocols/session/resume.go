package session

import (
	"context"

	"openmesh/protocols/identity"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// persistent reports whether the session outlives the process.
func (s *Session) persistent() bool { return false }

func (s *Session) outstanding() bool { return false }

func (s *Session) suspend(reason wire.Code) {}

func (e *Endpoint) locate(ctx context.Context, s *Session) Route { return Route{Peer: s.Peer().Peer} }

func (e *Endpoint) resume(ctx context.Context, s *Session, r Route) error { return wire.NotFound }

func (e *Endpoint) mayResume(c *identity.Certificate, id signal.ID) (signal.Contract, error) {
	return signal.Contract{}, wire.NotFound
}

func (e *Endpoint) revive(est *signal.Established, ch *channel) (*Session, error) {
	return nil, wire.NotFound
}
