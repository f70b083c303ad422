package catalog

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// peersDir is where schemas of peers are kept, in the folder. Each can be had
// again, so they are not written durably: a damaged one is dropped.
const peersDir = ".peers"

// Fetch returns the schema with a CID, asking an agent for it if it is not here.
// Only what has that CID is taken, and only if validating with it takes bounded
// time: see [tame]. It has no name: what a peer calls it is the peer's word.
//
// Errors: wire.InvalidArgument for what is no CID; wire.InvalidResponse for
// another text or one that cannot be used; wire.NotFound if nobody can be asked;
// those of [Config.Fetch].
func (g *Catalog) Fetch(ctx context.Context, agent identity.AgentID, id string) (Entry, error) {
	c, ok := parseCID(id)
	if !ok {
		return Entry{}, errNoCID(id)
	}
	e, err := g.Get(c)
	if err == nil || !errors.Is(err, wire.NotFound) || g.cfg.Fetch == nil {
		return e, err
	}
	text, err := g.cfg.Fetch(ctx, agent, c)
	if err != nil {
		return Entry{}, wire.Errorf(wire.CodeOf(err), "fetch schema %s from %s: %w", c, agent, err)
	}
	p, err := fromPeer(c, text)
	if err != nil {
		return Entry{}, wire.Errorf(wire.InvalidResponse, "fetch schema %s from %s: %w", c, agent, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if old := g.cids[c]; old != nil {
		return *old, nil
	}
	g.remember(p)
	return *p, nil
}

// fromPeer makes an entry of what a peer says is the text with a CID.
func fromPeer(id string, text []byte) (*Entry, error) {
	if len(text) > MaxSchema {
		return nil, wire.Errorf(wire.TooLarge, "%d bytes; the limit is %d", len(text), MaxSchema)
	}
	if CID(text) != id {
		return nil, wire.Errorf(wire.Malformed, "the text has another CID")
	}
	if err := tame(text); err != nil {
		return nil, err
	}
	return newEntry("", Peer, slices.Clone(text))
}

// cached returns a schema of peers that an earlier run of the daemon has left;
// g.mu is held.
func (g *Catalog) cached(id string) *Entry {
	path := g.peerFile(id)
	text, err := readFile(path)
	if missing(err) {
		return nil
	}
	var e *Entry
	if err == nil {
		e, err = fromPeer(id, text)
	}
	if err != nil {
		g.cfg.Log.Warn("cached schema dropped", zap.String("cid", id), zap.Error(errors.Join(err, os.Remove(path))))
		return nil
	}
	g.cids[id] = e
	return e
}

func (g *Catalog) peerFile(id string) string {
	return filepath.Join(g.cfg.Dir, peersDir, id+extension)
}

// remember keeps a schema of a peer in the place of the oldest; g.mu is held. One
// that cannot be written is known until the daemon ends.
func (g *Catalog) remember(e *Entry) {
	dir := filepath.Join(g.cfg.Dir, peersDir)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = g.makeRoom(dir)
	}
	if err == nil {
		var temp string
		if temp, err = stage(dir, e.Text); err == nil {
			if err = os.Rename(temp, g.peerFile(e.CID)); err != nil {
				err = errors.Join(err, os.Remove(temp))
			}
		}
	}
	if err != nil {
		g.complain(peersDir, "schemas of peers cannot be kept", err)
		g.crowdOut()
	}
	g.cids[e.CID] = e
}

// crowdOut forgets schemas of peers that the folder does not bound.
func (g *Catalog) crowdOut() {
	count := 0
	for id, e := range g.cids {
		if e.Source != Peer {
			continue
		}
		if count++; count >= MaxPeers {
			delete(g.cids, id)
		}
	}
}

// makeRoom removes the oldest files until one more may come, and forgets their
// schemas.
func (g *Catalog) makeRoom(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			all = append(all, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.name, b.name)) })
	for _, old := range all[:max(0, len(all)-MaxPeers+1)] {
		if err := os.Remove(filepath.Join(dir, old.name)); err != nil && !missing(err) {
			return err
		}
		id := strings.TrimSuffix(old.name, extension)
		if e := g.cids[id]; e != nil && e.Source == Peer {
			delete(g.cids, id)
		}
	}
	return nil
}
