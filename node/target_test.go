package node

import (
	"testing"

	"openmesh/protocols/wire"
)

func TestSplitVersion(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ target, version, name, want string }{
		{"a/b", "", "a/b", ""},
		{"a/b", ">=2", "a/b", ">=2"},
		{"a/b@1", "", "a/b", "^1"},
		{"0:A91F.0000.7C2E", "", "0:A91F.0000.7C2E", ""},
	} {
		name, version, err := splitVersion(tc.target, tc.version)
		if err != nil || name != tc.name || version != tc.want {
			t.Errorf("splitVersion(%q, %q) = %q, %q, %v", tc.target, tc.version, name, version, err)
		}
	}
	for _, tc := range [][2]string{{"a/b@", ""}, {"a/b@x", ""}, {"a/b@1.2", ""}, {"a/b@1", ">=1"}, {"a@1@2", ""}} {
		if _, _, err := splitVersion(tc[0], tc[1]); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("splitVersion(%q, %q): %v", tc[0], tc[1], err)
		}
	}
}

// A home has one daemon; when it ends, even without a word, the next may start.
func TestLockHome(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	unlock, err := lockHome(home)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockHome(home); wire.CodeOf(err) != wire.AlreadyExists {
		t.Errorf("second lock: %v", err)
	}
	unlock()
	again, err := lockHome(home)
	if err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	again()
}
