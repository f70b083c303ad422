package descriptor

import (
	"strconv"
	"strings"

	"github.com/Masterminds/semver/v3"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/wire"
)

const (
	// MaxName bounds a capability's name, in bytes.
	MaxName = 120
	// MaxSegments bounds how many segments a name has.
	MaxSegments = 5

	maxCircle  = 64
	maxVersion = 64
	maxTags    = 32
)

// CheckName checks a capability's name, or a prefix of one:
// [a-z0-9-]+(/[a-z0-9-]+){0,4}, at most 120 bytes. The error is wire.Malformed.
func CheckName(name string) error {
	segments := strings.Split(name, "/")
	ok := len(name) <= MaxName && len(segments) <= MaxSegments
	for _, s := range segments {
		ok = ok && s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	}
	if !ok {
		return wire.Errorf(wire.Malformed, "capability name %.130q", name).
			WithHint("a name is 1 to %d segments of a-z, 0-9 and -, joined by /, at most %d bytes", MaxSegments, MaxName)
	}
	return nil
}

// Covers reports whether name is at or under prefix, by whole segments.
func Covers(prefix, name string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// Visibility says who gets to know of a capability. The zero value is public.
type Visibility struct {
	Circle  string // members of this circle only
	Private bool   // nobody: only who knows the address can call it
}

// ParseVisibility reads public (or nothing), circle:<name> or private. A
// circle's name is 1 to 64 bytes of a-z, 0-9, '-', '.' and '_'.
func ParseVisibility(s string) (Visibility, error) {
	switch circle, ok := strings.CutPrefix(s, "circle:"); {
	case s == "" || s == "public":
		return Visibility{}, nil
	case s == "private":
		return Visibility{Private: true}, nil
	case ok && circle != "" && len(circle) <= maxCircle && strings.Trim(circle, "abcdefghijklmnopqrstuvwxyz0123456789-._") == "":
		return Visibility{Circle: circle}, nil
	}
	return Visibility{}, wire.Errorf(wire.Malformed, "visibility %.80q", s).
		WithHint("visibility is public, circle:NAME or private")
}

// String returns the canonical form.
func (v Visibility) String() string {
	switch {
	case v.Private:
		return "private"
	case v.Circle != "":
		return "circle:" + v.Circle
	}
	return "public"
}

// CheckCapabilities checks the shape of an agent's capabilities: count, names,
// versions, visibility, and that none is there twice. Errors: wire.TooLarge,
// wire.Malformed.
func CheckCapabilities(cs []*descriptorpb.Capability) error {
	if len(cs) > MaxCapabilities {
		return wire.Errorf(wire.TooLarge, "%d capabilities, the limit is %d", len(cs), MaxCapabilities)
	}
	seen := make(map[string]bool, len(cs))
	for _, c := range cs {
		if err := checkCapability(c); err != nil {
			return err
		}
		if id := c.Name + "@" + c.Version; seen[id] {
			return wire.Errorf(wire.Malformed, "capability %s is there twice", id)
		} else {
			seen[id] = true
		}
	}
	return nil
}

func checkCapability(c *descriptorpb.Capability) error {
	if err := CheckName(c.GetName()); err != nil {
		return err
	}
	if _, err := parseVersion(c.Version); err != nil {
		return wire.Errorf(wire.Malformed, "capability %s: %w", c.Name, err)
	}
	if _, err := ParseVisibility(c.Visibility); err != nil {
		return wire.Errorf(wire.Malformed, "capability %s: %w", c.Name, err)
	}
	if len(c.Tags) > maxTags {
		return wire.Errorf(wire.Malformed, "capability %s: %d tags, the limit is %d", c.Name, len(c.Tags), maxTags)
	}
	return nil
}

// parseVersion reads a semantic version (semver.org 2.0.0), nothing looser.
func parseVersion(s string) (*semver.Version, error) {
	if len(s) > maxVersion {
		return nil, wire.Errorf(wire.Malformed, "version of %d bytes, the limit is %d", len(s), maxVersion)
	}
	v, err := semver.StrictNewVersion(s)
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "version %q: %w", s, err).WithHint("a version is MAJOR.MINOR.PATCH, such as 1.4.0")
	}
	return v, nil
}

// Names returns the names under which a capability is provided: every prefix of
// its name, and the name with the major version.
//
//	finance/fx-pricing 1.4.0  →  finance, finance/fx-pricing, finance/fx-pricing@1
//
// Those of a circle have circle:<circle>/ in front, so that no one comes across
// them on the way to a public name. What hides them is that outsiders do not
// know the circle's name: it is no secret that withstands guessing. Private
// capabilities have no names.
func Names(name, version string, v Visibility) ([]string, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	ver, err := parseVersion(version)
	if err != nil || v.Private {
		return nil, err
	}
	var out []string
	for i, c := range name + "/" {
		if c == '/' {
			out = append(out, Scoped(v.Circle, name[:i]))
		}
	}
	return append(out, Scoped(v.Circle, Major(name, ver.Major()))), nil
}

// Major is the name under which all versions of one major version are provided.
func Major(name string, major uint64) string {
	return name + "@" + strconv.FormatUint(major, 10)
}

// Scoped puts name into the scope of a circle; without one it stays as it is.
func Scoped(circle, name string) string {
	if circle == "" {
		return name
	}
	return "circle:" + circle + "/" + name
}

// Key returns the DHT key of one of the [Names]:
// CIDv1(raw, sha2-256("openmesh/cap/" + name)).
func Key(name string) cid.Cid {
	h, err := multihash.Sum([]byte("openmesh/cap/"+name), multihash.SHA2_256, -1)
	if err != nil {
		panic(err) // SHA-256 is always there
	}
	return cid.NewCidV1(cid.Raw, h)
}

// Keys returns the [Key] of each of the [Names].
func Keys(name, version string, v Visibility) ([]cid.Cid, error) {
	names, err := Names(name, version, v)
	keys := make([]cid.Cid, len(names))
	for i, n := range names {
		keys[i] = Key(n)
	}
	return keys, err
}
