package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/handlers/capability"
)

// A descriptor has the deliveries that a capability's file names, or all.
func TestDeliveriesInDescriptor(t *testing.T) {
	t.Parallel()
	n := aligned(t, nil)
	for _, tc := range []struct{ says, want []string }{
		{[]string{"at-most-once"}, []string{"at-most-once"}},
		{nil, []string{"at-most-once", "at-least-once", "exactly-once"}},
	} {
		m := n.capabilityMessage(&capability.Capability{Name: "fx", Version: "1.0.0", QoS: tc.says})
		if diff := cmp.Diff(tc.want, m.Qos); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}
