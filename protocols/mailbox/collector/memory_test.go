package collector

import (
	"fmt"
	"testing"
	"time"

	"openmesh/protocols/mailbox"
)

func key(n int) [16]byte { return letterKey("did:key:z", mailbox.ID{byte(n), byte(n >> 8)}) }

// Up to maxRemembered letters are remembered; beyond, the expired and then the
// oldest go.
func TestRemembered(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	d := delivered{expires: make(map[[16]byte]int64)}
	for n := range maxRemembered {
		expires := now.Add(time.Hour)
		if n%2 == 1 && n > 1000 {
			expires = now.Add(time.Minute)
		}
		d.add(key(n), expires, now)
	}
	for n := range maxRemembered {
		if !d.has(key(n)) {
			t.Fatalf("letter %d is forgotten", n)
		}
	}
	now = now.Add(2 * time.Minute)
	for n := range maxRemembered {
		d.add(key(maxRemembered+n), now.Add(time.Hour), now)
		if len(d.order) > maxRemembered || len(d.expires) != len(d.order) {
			t.Fatalf("%d letters, %d in order", len(d.expires), len(d.order))
		}
		if !d.has(key(maxRemembered + n)) {
			t.Fatalf("letter %d is forgotten at once", n)
		}
		if n == 100 && (!d.has(key(0)) || d.has(key(1001))) {
			t.Error("not the expired ones went first")
		}
	}
	if d.has(key(0)) {
		t.Error("the oldest is still there")
	}
}

func FuzzRemembered(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 48))
	f.Add([]byte(fmt.Sprintf("%072d", 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d, again delivered
		if d.unmarshal(b) != nil {
			return
		}
		if err := again.unmarshal(d.marshal()); err != nil || len(again.order) != len(d.order) || len(d.expires) != len(d.order) {
			t.Errorf("%x: %v", b, err)
		}
	})
}
