package grpclink

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// crowd counts what each site has and does. A site is an IPv4 address or an IPv6
// /56: what one party can have many of. Sites that have done nothing for a while
// are forgotten.
type crowd struct {
	perSite   int        // connections of a site
	all       int        // connections in all
	connects  rate.Limit // connections a second of a site; as many as perSite at once
	exchanges rate.Limit // exchanges a second of a site; four seconds' worth at once

	mu    sync.Mutex
	conns int
	sites map[netip.Prefix]*site
	swept time.Time // when sites were last forgotten
}

type site struct {
	conns     int
	connects  *rate.Limiter
	exchanges *rate.Limiter
	seen      time.Time
}

const (
	// maxSites bounds the memory. When it is reached, sites that are quiet are
	// forgotten; if there are none, a new site is refused.
	maxSites = 8192
	quiet    = time.Minute
)

func siteOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := 56
	if ip.Is4() {
		bits = 32
	}
	prefix, _ := ip.Prefix(bits) // bits fit; the zero Addr is a site too
	return prefix
}

// enter counts a connection, or reports that there are too many. Each that
// entered must leave.
func (c *crowd) enter(ip netip.Addr, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.site(ip, now)
	if s == nil || c.conns >= c.all || s.conns >= c.perSite || !s.connects.AllowN(now, 1) {
		return false
	}
	c.conns++
	s.conns++
	return true
}

func (c *crowd) leave(ip netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns--
	c.sites[siteOf(ip)].conns-- // a site with connections is not forgotten
}

// exchange reports whether the site may do one more exchange now.
func (c *crowd) exchange(ip netip.Addr, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.site(ip, now)
	return s != nil && s.exchanges.AllowN(now, 1)
}

// site returns the site of ip, or nil if there is no room; c.mu is held.
func (c *crowd) site(ip netip.Addr, now time.Time) *site {
	prefix := siteOf(ip)
	s := c.sites[prefix]
	if s == nil {
		if len(c.sites) >= maxSites && !c.forget(now) {
			return nil
		}
		s = &site{
			connects:  rate.NewLimiter(c.connects, c.perSite),
			exchanges: rate.NewLimiter(c.exchanges, int(4*c.exchanges)),
		}
		c.sites[prefix] = s
	}
	s.seen = now
	return s
}

// forget drops quiet sites, and reports whether there were any. It looks once a
// second at most: those who fill the table shall not buy work with it.
func (c *crowd) forget(now time.Time) bool {
	if now.Sub(c.swept) < time.Second {
		return false
	}
	c.swept = now
	n := len(c.sites)
	for prefix, s := range c.sites {
		if s.conns == 0 && now.Sub(s.seen) > quiet {
			delete(c.sites, prefix)
		}
	}
	return len(c.sites) < n
}
