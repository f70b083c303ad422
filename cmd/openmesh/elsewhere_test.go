package main

import (
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// An agent that has crashed and started again has other ports. Those who knew it find it
// there: opening a session looks anew for who cannot be reached, as a call does.
func TestOpenElsewhere(t *testing.T) {
	t.Parallel()
	st := newStorm(t, scale{})
	st.open(&openmeshv1.OpenSessionRequest{})
	for range 3 {
		st.b.kill()
		if err := st.b.start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		s, err := st.a.api().Session.Open(t.Context(), &openmeshv1.OpenSessionRequest{Targets: []string{st.b.agent}})
		if err != nil {
			t.Fatalf("%v after %s", err, time.Since(began))
		}
		t.Logf("session %s after %s", s.Session, time.Since(began))
	}
}
