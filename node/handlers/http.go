package handlers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/wire"
)

// newTransport returns connections for all HTTP handlers. They are kept alive,
// since handlers are few and near, and opened in seconds or not at all.
func newTransport(cfg Config) *http.Transport {
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  cfg.Proxy,
		DialContext:            dialer.DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // near, and a bomb could hide in it
		ForceAttemptHTTP2:      true,
	}
}

// httpHandler posts requests to a URL.
type httpHandler struct {
	url         string
	header      http.Header // to be cloned for each request
	host        string      // for the Host header; empty: that of the URL
	client      *http.Client
	correlation string
	maxResponse int
	log         *zap.Logger
}

func (r *Registry) newHTTP(h *capability.HTTP) (*httpHandler, error) {
	header, host := http.Header{}, ""
	for name, value := range h.Headers {
		v, err := capability.Expand(value, r.cfg.Getenv)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", name, err)
		}
		if strings.EqualFold(name, "host") {
			host = v
			continue
		}
		header.Set(name, v)
	}
	header.Set("Content-Type", "application/json")
	header.Set("Accept", "application/json, "+ndjson+", "+eventStream)
	return &httpHandler{
		url: h.URL, header: header, host: host, correlation: r.cfg.CorrelationHeader,
		maxResponse: r.cfg.MaxResponse, log: r.cfg.Log,
		client: &http.Client{Transport: r.transport, CheckRedirect: stay},
	}, nil
}

// stay follows no redirects: they would carry the caller's request, and our
// headers, to where the file does not say.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// The content types of a response in parts.
const (
	ndjson      = "application/x-ndjson"
	eventStream = "text/event-stream"
)

// Handle tells by its error whether the request may have had an effect: it did
// not with [wire.HandlerUnavailable].
func (h *httpHandler) Handle(ctx context.Context, req *Request) (*Response, error) {
	var sent atomic.Bool // the connection's goroutine sets it
	trace := httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}
	calling, cancel := context.WithCancel(httptrace.WithClientTrace(ctx, &trace))
	hr, err := h.request(calling, ctx, req)
	if err != nil {
		cancel()
		return nil, err
	}
	resp, err := h.client.Do(hr)
	if err != nil {
		cancel()
		return nil, transportError(ctx, err, sent.Load())
	}
	if split := splitter(resp); split != nil {
		return h.parts(resp, split, cancel), nil
	}
	defer cancel()
	defer resp.Body.Close()
	return h.read(ctx, resp)
}

// request is what is sent within calling; what it tells is of ctx.
func (h *httpHandler) request(calling, ctx context.Context, req *Request) (*http.Request, error) {
	hr, err := http.NewRequestWithContext(calling, http.MethodPost, h.url, bytes.NewReader(req.Body))
	if err != nil {
		return nil, wire.Errorf(wire.HandlerUnavailable, "call the handler: %w", err)
	}
	hr.Header, hr.Host = h.header.Clone(), h.host
	for _, f := range facts(ctx, req, h.correlation) {
		if f.header != "" {
			hr.Header.Set(f.header, f.value)
		}
	}
	return hr, nil
}

// splitter returns what finds the parts in a response's body, nil if it is one
// document.
func splitter(resp *http.Response) func(io.Reader, int, func([]byte) error) error {
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case err != nil || resp.StatusCode/100 != 2:
		return nil
	case media == ndjson:
		return sendLines
	case media == eventStream:
		return sendEvents
	}
	return nil
}

// parts is a response whose body is read only as its parts are taken. Cancel ends
// the request.
func (h *httpHandler) parts(resp *http.Response, split func(io.Reader, int, func([]byte) error) error, cancel func()) *Response {
	return &Response{Produce: func(ctx context.Context, send func([]byte) error) error {
		defer cancel()
		defer resp.Body.Close()
		defer context.AfterFunc(ctx, cancel)()
		return split(readerFunc(func(p []byte) (int, error) {
			n, err := resp.Body.Read(p)
			if err != nil && err != io.EOF {
				err = transportError(ctx, err, true)
			}
			return n, err
		}), h.maxResponse, send)
	}}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func transportError(ctx context.Context, err error, sent bool) error {
	switch {
	case ctx.Err() != nil:
		return ended(ctx, "call the handler")
	case !sent:
		return wire.Errorf(wire.HandlerUnavailable, "reach the handler: %w", err).WithHint("Is it running at the URL of the capability file?")
	}
	return wire.Errorf(wire.HandlerFailed, "read the handler's answer: %w", err)
}

func (h *httpHandler) read(ctx context.Context, resp *http.Response) (*Response, error) {
	if resp.StatusCode/100 != 2 {
		return nil, h.refused(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(h.maxResponse)+1))
	if err != nil {
		return nil, transportError(ctx, err, true)
	}
	if len(body) > h.maxResponse {
		return nil, tooLong(h.maxResponse)
	}
	return &Response{Body: emptyIsNull(body)}, nil
}

func tooLong(limit int) error {
	return wire.Errorf(wire.InvalidResponse, "the handler's answer, or a part of it, is longer than %d bytes", limit).
		WithHint("Larger answers go in parts; see: openmesh capability example")
}

// refused makes an error of a status. What the handler says of it is for the
// log alone, and there for debugging only.
func (h *httpHandler) refused(resp *http.Response) error {
	const excerpt = 512
	said, _ := io.ReadAll(io.LimitReader(resp.Body, excerpt)) // what could be read of it will do
	h.log.Debug("handler refused", zap.Int("status", resp.StatusCode), zap.ByteString("excerpt", said))
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return wire.Errorf(wire.HandlerUnavailable, "the handler answered %s", resp.Status)
	}
	return wire.Errorf(wire.HandlerFailed, "the handler answered %s", resp.Status)
}
