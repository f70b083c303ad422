//go:build !linux

package netlab_test

import "testing"

func TestNeedsLinux(t *testing.T) { t.Skip("network lab: needs Linux") }
