package api

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	"openmesh/protocols/wire"
)

const tokenBytes = 32 // of randomness; twice as many hex digits in the file

// guard refuses what must not reach a procedure, before its body is read.
func (s *Server) guard(next http.Handler) http.Handler {
	refusals := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.admit(r); err != nil {
			// The caller is gone if this fails: there is no one to tell.
			_ = refusals.Write(w, r, toConnect(err))
			return
		}
		s.calls.Add(1)
		defer s.calls.Done()
		next.ServeHTTP(w, r)
	})
}

func (s *Server) admit(r *http.Request) error {
	if _, ok := access(r.URL.Path); !ok {
		return wire.Errorf(wire.Unsupported, "no procedure %q", r.URL.Path)
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return wire.Errorf(wire.Internal, "a connection without a local address")
	}
	if local.Network() == "unix" { // the file's mode has decided
		return nil
	}
	at, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return fmt.Errorf("parse local address: %w", err)
	}
	if err := s.checkHost(r.Host, at); err != nil {
		return err
	}
	if err := checkOrigin(r); err != nil {
		return err
	}
	return s.checkToken(r.Header.Get("Authorization"))
}

// checkHost accepts only names that no one can point elsewhere: a web page of
// evil.example that rebinds its name to 127.0.0.1 still says evil.example.
func (s *Server) checkHost(host string, at netip.AddrPort) error {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	for _, l := range s.listeners {
		if l.took(at) && l.named(name) {
			return nil
		}
	}
	return wire.Errorf(wire.Denied, "host %q is not this daemon", host).
		WithHint("address the daemon by IP or as localhost")
}

// named reports whether host is a name by which the listener may be addressed.
func (l listener) named(host string) bool {
	ip, err := netip.ParseAddr(host)
	switch {
	case l.ip.IsUnspecified():
		return err == nil || host == "localhost"
	case l.ip.IsLoopback():
		return err == nil && ip.IsLoopback() || host == "localhost"
	default:
		return err == nil && ip.Unmap() == l.ip
	}
}

// checkOrigin refuses browsers that act for another site.
func checkOrigin(r *http.Request) error {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "http" || u.Host != r.Host {
		return wire.Errorf(wire.Denied, "origin %q may not call this daemon", origin)
	}
	return nil
}

func (s *Server) checkToken(authorization string) error {
	given, ok := strings.CutPrefix(authorization, "Bearer ")
	// Hashes have one length, so that the time tells nothing about the token's.
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(s.token))
	if !ok || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return wire.Errorf(wire.Unauthenticated, "a call over TCP needs the daemon's token").
			WithHint("send the header: Authorization: Bearer $(cat %s)", s.cfg.TokenFile)
	}
	return nil
}

// openToken reads the token, or makes one that only the user can read.
func openToken(path string) (string, error) {
	token, err := readToken(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return token, err
	}
	raw := make([]byte, tokenBytes)
	rand.Read(raw) // never fails (crypto/rand)
	token = hex.EncodeToString(raw)
	if err := writeFile(path, token+"\n"); err != nil {
		return "", err
	}
	return token, nil
}

// readToken reads a token and refuses one that other users can read or that
// could be guessed.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return "", fmt.Errorf("other users may read it (mode %#o): remove it, a new one is made", mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, 4*tokenBytes))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if len(token) < 2*tokenBytes {
		return "", fmt.Errorf("shorter than %d digits: remove it, a new one is made", 2*tokenBytes)
	}
	return token, nil
}

// bounded limits the size of a request and the time that it takes to arrive.
func bounded(next http.Handler, limit int) http.Handler {
	return http.MaxBytesHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := http.NewResponseController(w)
		if err := conn.SetReadDeadline(time.Now().Add(bodyTimeout)); err == nil {
			r.Body = &timedBody{r.Body, conn}
		}
		next.ServeHTTP(w, r)
	}), int64(limit))
}

// timedBody lifts the read deadline once the body is there: the connection is
// read on to see whether the caller goes away, and that may take long.
type timedBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.conn.SetReadDeadline(time.Time{}) // fails only if the caller is gone
	}
	return n, err
}
