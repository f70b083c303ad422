package node

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers/capability"
	"openmesh/overlay/directory"
	"openmesh/overlay/directory/query"
	"openmesh/protocols/wire"
)

// directoryAPI serves openmesh.v1.Directory.
type directoryAPI struct{ *Node }

func (n directoryAPI) AddCapability(_ context.Context, r *openmeshv1.AddCapabilityRequest) (*openmeshv1.Capability, error) {
	file := orDefault(r.File, "capability")
	base := r.BaseDir
	if base == "" {
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		base = dir
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(base, filepath.Base(file))
	}
	c, err := capability.Parse([]byte(r.Document), file)
	if err != nil {
		return nil, err
	}
	if err := reserved(c.Name); err != nil {
		return nil, err
	}
	old, had := n.registry.Get(c.Name)
	if err := n.registry.Add(c); err != nil {
		return nil, err
	}
	if err := n.store.Save(c); err != nil {
		n.registry.Remove(c.Name) // what cannot be kept is not offered
		if had {
			if err := n.registry.Add(old); err != nil {
				n.log.Error("former capability not restored", zap.String("capability", c.Name), zap.Error(err))
			}
		}
		return nil, err
	}
	return n.capabilityInfo(c), nil
}

func (n directoryAPI) ListCapabilities(context.Context, *openmeshv1.ListCapabilitiesRequest) (*openmeshv1.ListCapabilitiesResponse, error) {
	resp := &openmeshv1.ListCapabilitiesResponse{Capabilities: []*openmeshv1.Capability{}}
	for _, c := range n.registry.List() {
		resp.Capabilities = append(resp.Capabilities, n.capabilityInfo(c))
	}
	return resp, nil
}

func (n directoryAPI) capabilityInfo(c *capability.Capability) *openmeshv1.Capability {
	m := &openmeshv1.Capability{
		Name: c.Name, Version: c.Version, Domain: c.Domain, Tags: c.Tags,
		Visibility: orDefault(c.Visibility, "public"), Handler: c.Kind(),
	}
	if until, ok := n.directory.Registered()[c.Name+"@"+c.Version]; ok && !until.IsZero() {
		m.RegisteredUntil = until.UTC().Format(time.RFC3339)
	}
	return m
}

func (n directoryAPI) RemoveCapability(_ context.Context, r *openmeshv1.RemoveCapabilityRequest) (*openmeshv1.RemoveCapabilityResponse, error) {
	if _, ok := n.registry.Get(r.Name); !ok {
		return nil, wire.Errorf(wire.NotFound, "this agent offers no capability %.130q", r.Name).
			WithHint("list them with: openmesh capability list")
	}
	if err := n.store.Remove(r.Name); err != nil {
		return nil, err
	}
	n.registry.Remove(r.Name)
	return &openmeshv1.RemoveCapabilityResponse{Name: r.Name}, nil
}

func (n directoryAPI) Discover(ctx context.Context, r *openmeshv1.DiscoverRequest) (*openmeshv1.DiscoverResponse, error) {
	q, err := queryOf(r)
	if err != nil {
		return nil, err
	}
	res, err := n.directory.Discover(ctx, q)
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.DiscoverResponse{
		Results: []*openmeshv1.DiscoverResult{}, ElapsedMs: millis(res.Elapsed), Cached: res.Cached,
	}
	for _, row := range res.Rows {
		n.seen.add(row.Descriptor.Certificate)
		resp.Results = append(resp.Results, rowMessage(row))
	}
	return resp, nil
}

func queryOf(r *openmeshv1.DiscoverRequest) (directory.Query, error) {
	if r.MinUptime < 0 || r.MinUptime > 100 || r.MaxLatencyMs < 0 || r.MinTrust < 0 || r.MinTrust > 1 {
		return directory.Query{}, wire.Errorf(wire.InvalidArgument, "discover: a bound is out of range").
			WithHint("uptime is 0 to 100 percent, trust 0 to 1, latency not negative")
	}
	name, version, err := splitVersion(r.Capability, r.Version)
	if err != nil {
		return directory.Query{}, err
	}
	return directory.Query{
		Capability: name, Version: version, MinUptime: r.MinUptime,
		MaxLatency: time.Duration(r.MaxLatencyMs * float64(time.Millisecond)),
		Region:     r.Region, Jurisdiction: r.Jurisdiction, Domain: r.Domain, Tags: r.Tags, MinTrust: r.MinTrust,
		Limit: int(r.Limit), Sort: query.Column(r.Sort),
	}, nil
}

func rowMessage(row directory.Row) *openmeshv1.DiscoverResult {
	return &openmeshv1.DiscoverResult{
		Agent: string(row.Agent), Address: row.Address.String(), Peer: row.Peer.String(), Name: row.Name, Version: row.Version,
		LatencyMs: millis(row.Latency), Load: row.Load, UptimePct: row.Uptime, Trust: row.Trust, Region: row.Region,
		KeyVersion: row.KeyVersion, Reachability: row.Reachability, AgeS: row.Age.Seconds(), Score: row.Score,
		Domain: row.Capability.Domain, Tags: row.Capability.Tags, Contract: row.Capability.Contract,
	}
}

func (n directoryAPI) Resolve(ctx context.Context, r *openmeshv1.ResolveRequest) (*openmeshv1.ResolveResponse, error) {
	a, err := n.resolve(ctx, r.Target)
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.ResolveResponse{
		Agent: string(a.ID), Address: a.Address.String(), Peer: a.Peer.ID.String(), KeyVersion: a.Certificate.Version,
		Reachability: a.Reachability, Addrs: []string{}, Mailboxes: append([]string{}, a.Mailboxes...),
	}
	for _, addr := range a.Peer.Addrs {
		resp.Addrs = append(resp.Addrs, addr.String()+"/p2p/"+a.Peer.ID.String())
	}
	return resp, nil
}
