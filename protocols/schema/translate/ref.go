package translate

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"openmesh/protocols/wire"
)

// Ref names a version of a schema.
type Ref struct {
	Name    string // such as market/proposal
	Version string // semantic version without v, such as 1.0.0
}

// String returns the form that [ParseRef] reads: market/proposal@v1.0.0.
func (r Ref) String() string { return r.Name + "@v" + r.Version }

const (
	maxName    = 120 // bytes of a name
	maxVersion = 64  // bytes of a version
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*$`)

// ParseRef reads NAME@VERSION, with or without v before the version. The error
// is a [wire.Error] with code [wire.InvalidArgument].
func ParseRef(s string) (Ref, error) {
	const hint = "Such as market/proposal@v1.0.0."
	name, version, _ := strings.Cut(s, "@")
	if len(name) > maxName || !namePattern.MatchString(name) {
		return Ref{}, wire.Errorf(wire.InvalidArgument, "%.200q does not begin with the name of a schema", s).WithHint(hint)
	}
	canonical, ok := canonicalVersion(version)
	if !ok {
		return Ref{}, wire.Errorf(wire.InvalidArgument, "%.200q has no version of three numbers after @", s).WithHint(hint)
	}
	return Ref{name, canonical}, nil
}

// canonicalVersion takes off the v. Build metadata, which has no order, is refused.
func canonicalVersion(s string) (string, bool) {
	if len(s) > maxVersion {
		return "", false
	}
	v, err := semver.StrictNewVersion(strings.TrimPrefix(s, "v"))
	if err != nil || v.Metadata() != "" {
		return "", false
	}
	return v.String(), true
}

// compareVersions orders canonical versions.
func compareVersions(a, b string) int {
	va, errA := semver.StrictNewVersion(a)
	vb, errB := semver.StrictNewVersion(b)
	if errA != nil || errB != nil {
		return cmp.Compare(a, b)
	}
	return va.Compare(vb)
}

// highestFirst sorts canonical versions.
func highestFirst(versions []string) {
	slices.SortFunc(versions, func(a, b string) int { return compareVersions(b, a) })
}

// listed shows versions to a person, the first few of them.
func listed(versions []string) string {
	const most = 16
	if len(versions) == 0 {
		return "nothing"
	}
	text := fmt.Sprintf("%.70q", versions[:min(len(versions), most)])
	text = strings.Trim(strings.ReplaceAll(text, `" "`, ", "), `["]`)
	if len(versions) > most {
		text += fmt.Sprintf(" and %d more", len(versions)-most)
	}
	return text
}
