// Package grpclink carries signaling and the channels of sessions over gRPC
// (HTTP/2 in TLS on one TCP port), without libp2p: for agents whose network lets
// nothing else out.
//
//	service openmesh.link.v1.Link (grpclinkpb/link.proto)
//	  Exchange  one request, one response, by protocol id; at most 64 KiB each
//	  Open      a byte stream both ways, in chunks of at most 64 KiB
//
//	TCP ── TLS 1.3 ── HTTP/2 ── gRPC ── Chunk{data} ── session frames, sealed
//
// TLS hides metadata from those on the way and looks like HTTPS to them. It does
// not authenticate: the server's certificate is its own and ephemeral, and the
// client accepts any. Who the peer is, and that nobody listens in, is for what is
// carried to establish: signaling authenticates both agents and sessions seal
// their frames end to end.
//
// Addresses are multiaddrs, /dns4/HOST/tcp/PORT/tls/http, or for people
// https://HOST:PORT.
//
// Limits: connections in all and per IP (IPv4 address or IPv6 /56), and their
// rate; streams in all and per connection; exchanges per IP and second; header
// lists of 8 KiB; unread data per stream. Timeouts: TLS handshake and HTTP/2
// preface 10 s; an exchange 30 s; a connection without calls 2 min; a peer that
// does not answer pings is dropped.
package grpclink

import "time"

const (
	// MaxBody is how many bytes a request or response of an exchange may have.
	MaxBody = 64 << 10

	maxMessage  = MaxBody + 1<<10 // of a gRPC message: a body, with its protocol id
	maxChunk    = 32<<10 - 16     // data that Write puts in a chunk: with its header it fits a pooled buffer
	maxProtocol = 128             // bytes of a protocol id
	maxHeader   = 8 << 10         // bytes of a list of header fields
	window      = 512 << 10       // unread bytes of a stream
	connWindow  = 4 << 20         // unread bytes of a connection

	handshakeTimeout = 10 * time.Second
	exchangeTimeout  = 30 * time.Second
	serverIdle       = 2 * time.Minute
	dialerIdle       = 90 * time.Second

	// How long the peer has, after Reset, to read why; and after Close, to read
	// what was written.
	resetGrace = 100 * time.Millisecond
	closeGrace = 5 * time.Second

	service        = "openmesh.link.v1.Link"
	exchangeMethod = "/" + service + "/Exchange"
	openMethod     = "/" + service + "/Open"
)

// defaultKeepalive is the time between pings, and how long an answer may take. A
// client's cannot be shorter than 10 s with gRPC.
const defaultKeepalive = 10 * time.Second
