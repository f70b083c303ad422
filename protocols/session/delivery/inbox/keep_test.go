package inbox_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// keeping is an inbox and what the keepers of messages have heard.
type keeping struct {
	*receiving
	heard []string
}

// keep receives a message for the handler, or for readers, that somebody keeps.
func (k *keeping) keep(sequence, floor uint64, capability string) {
	m := &delivery.Message{Sequence: sequence, Capability: capability, Attempt: 1}
	k.Keep(m, floor, k.now, func(err error) {
		word := "safe"
		if err != nil {
			word = wire.CodeOf(err).String()
		}
		k.heard = append(k.heard, fmt.Sprint(sequence, " ", word))
	})
}

func (k *keeping) hears(want ...string) {
	k.Helper()
	if !slices.Equal(k.heard, want) {
		k.Errorf("keepers heard %q, want %q", k.heard, want)
	}
	k.heard = nil
}

// Who keeps a message hears when it is safe, and once.
func TestKeep(t *testing.T) {
	const work, readers = "test/handler", ""
	for name, test := range map[string]struct {
		terms delivery.Terms
		story func(k *keeping)
	}{
		"until the handler is done": {terms(delivery.AtLeastOnce, false), func(k *keeping) {
			k.keep(1, 1, work)
			k.keep(1, 1, work) // twice
			k.hears()
			k.finish(1, "yes")
			k.hears("1 safe", "1 safe")
			k.keep(1, 1, work)
			k.hears("1 safe")
		}},
		"until the outcome is stored": {terms(delivery.ExactlyOnce, false), func(k *keeping) {
			k.store.Hold()
			k.keep(1, 1, work)
			k.finish(1, "yes")
			k.hears()
			k.store.Flush(1)
			k.hears("1 safe")
		}},
		"until it is stored for readers": {terms(delivery.AtLeastOnce, false), func(k *keeping) {
			k.store.Hold()
			k.keep(1, 1, readers)
			k.hears()
			k.store.Flush(1)
			k.hears("1 safe")
		}},
		"a refusal that may pass": {terms(delivery.AtLeastOnce, false), func(k *keeping) {
			k.keep(1, 1, work)
			k.fail(1, wire.HandlerUnavailable)
			k.hears("1 handler_unavailable")
			k.keep(1, 1, work)
			k.fail(1, wire.InvalidRequest)
			k.hears("1 safe")
		}},
		"no room": {delivery.Terms{QoS: delivery.AtLeastOnce, MaxPending: 1}, func(k *keeping) {
			k.keep(2, 1, work)
			k.keep(3, 1, work)
			k.hears("3 resource_exhausted")
		}},
		"at most once": {terms(delivery.AtMostOnce, false), func(k *keeping) {
			k.keep(1, 1, work)
			k.hears("1 safe")
			k.keep(2, 1, readers)
			k.hears("2 safe")
		}},
		"given up by its sender": {terms(delivery.AtLeastOnce, true), func(k *keeping) {
			k.keep(2, 1, work) // waits for the first
			k.hears()
			k.floor(3)
			k.hears("2 safe")
			k.keep(1, 1, work)
			k.hears("1 safe")
		}},
		"the process ends": {terms(delivery.AtLeastOnce, false), func(k *keeping) {
			k.keep(1, 1, work)
			k.Close()
			k.hears("1 unreachable")
			k.finish(1, "yes")
			k.keep(2, 1, work)
			k.hears("2 unreachable")
		}},
	} {
		t.Run(name, func(t *testing.T) { test.story(&keeping{receiving: newReceiving(t, test.terms)}) })
	}
}

// A message that cannot be stored comes again.
func TestKeepUnstored(t *testing.T) {
	k := &keeping{receiving: newReceiving(t, terms(delivery.AtLeastOnce, false))}
	k.store.FailNext(errors.New("disk full"))
	k.keep(1, 1, "")
	k.hears("1 resource_exhausted")
}
