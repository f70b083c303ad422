package form

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The syntaxes of names. Those of optional settings match the empty string.
var (
	label        = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)?$`)
	word         = regexp.MustCompile(`^[a-z0-9-]*$`)
	words        = regexp.MustCompile(`^([a-z0-9-]+(\.[a-z0-9-]+)*)?$`)
	jurisdiction = regexp.MustCompile(`^[A-Z]{2}(-[A-Z0-9]{1,3})?$`)
	fieldName    = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
	circleName   = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	schemaRef    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,119}@v?(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){2}(-[0-9A-Za-z.-]{1,32})?$`)
	hostName     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
)

// Label allows a DNS label (RFC 1123), or nothing.
func Label() Codec[string] {
	return matching(label, 63, "letters, digits and inner hyphens")
}

// Word allows a name of one part, or nothing.
func Word() Codec[string] {
	return matching(word, 64, "lower-case letters, digits and hyphens")
}

// Domain allows a name of parts, or nothing.
func Domain() Codec[string] {
	return matching(words, 253, "lower-case letters, digits and hyphens, in parts separated by dots")
}

// Jurisdiction allows a country or a part of one (ISO 3166-1 alpha-2, 3166-2).
func Jurisdiction() Codec[string] {
	return matching(jurisdiction, 6, "ISO 3166 codes such as DE or US-CA")
}

// FieldName allows the name of an HTTP header field (RFC 9110, section 5.1).
func FieldName() Codec[string] {
	return matching(fieldName, 64, "an HTTP field name")
}

// SchemaVersion allows a version of a schema.
func SchemaVersion() Codec[string] {
	return matching(schemaRef, 184, "NAME@VERSION such as market/proposal@v1.0.0")
}

// matching allows at most max bytes that match expr.
func matching(expr *regexp.Regexp, max int, allowed string) Codec[string] {
	return atom("string", fmt.Sprintf("%s; at most %d characters", allowed, max), func(s string) (string, error) {
		if len(s) > max {
			return "", errors.New("is too long")
		}
		if !expr.MatchString(s) {
			return "", errors.New("is not allowed")
		}
		return s, nil
	}, same)
}

// Host allows an IP address or a host name.
func Host() Codec[string] {
	return atom("string", "an IP address or host name", func(s string) (string, error) {
		if !isHost(s) {
			return "", errors.New("is neither")
		}
		return s, nil
	}, same)
}

func isHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || hostName.MatchString(s)
}

// hostPort checks "host:port"; an empty host stands for all interfaces.
func hostPort(s string) error {
	h, p, err := net.SplitHostPort(s)
	if err != nil || h != "" && !isHost(h) {
		return errors.New("is not host:port")
	}
	if _, err := strconv.ParseUint(p, 10, 16); err != nil {
		return errors.New("has a port outside 0..65535")
	}
	return nil
}

// APIAddr allows what the local API can listen on.
func APIAddr() Codec[string] {
	return atom("address", "host:port or unix:PATH", func(s string) (string, error) {
		if name, ok := strings.CutPrefix(s, "unix:"); ok {
			return s, fileName(name)
		}
		return s, hostPort(s)
	}, same)
}

// HostPort allows a host, or nothing for all interfaces, and a port.
func HostPort() Codec[string] {
	return atom("address", "host:port, such as 0.0.0.0:443", func(s string) (string, error) { return s, hostPort(s) }, same)
}

// Endpoint allows an HTTPS endpoint, or nothing.
func Endpoint() Codec[string] {
	return atom("string", "host:port or an https:// URL", func(s string) (string, error) {
		if s == "" {
			return "", nil
		}
		if strings.HasPrefix(s, ":") {
			return "", errors.New("names no host")
		}
		if !strings.HasPrefix(s, "https://") {
			return s, hostPort(s)
		}
		if u, err := url.Parse(s); err != nil || u.Hostname() == "" || u.User != nil {
			return "", errors.New("is no URL of a host")
		}
		return s, nil
	}, same)
}

// PostgresURL allows a PostgreSQL URL, or nothing. Its errors do not quote it.
func PostgresURL() Codec[string] {
	return atom("string", "empty or postgres://…", func(s string) (string, error) {
		if s == "" {
			return "", nil
		}
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			return "", errors.New("is no PostgreSQL URL")
		}
		return s, nil
	}, same)
}

// Mask hides the passwords in a URL.
func Mask(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "xxxxx"
	}
	q := u.Query()
	for name := range q {
		if strings.Contains(strings.ToLower(name), "pass") { // libpq: password, sslpassword, passfile
			q.Set(name, "xxxxx")
		}
	}
	u.RawQuery = q.Encode()
	return u.Redacted()
}

// Path allows a file name, or nothing.
func Path() Codec[string] {
	return atom("path", "a file name", func(s string) (string, error) {
		if s == "" {
			return "", nil
		}
		return s, fileName(s)
	}, same)
}

func fileName(s string) error {
	if s == "" {
		return errors.New("has no file name")
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("is no file name")
	}
	return nil
}
