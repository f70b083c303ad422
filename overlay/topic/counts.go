package topic

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// outcome is what became of a message.
type outcome string

const (
	published outcome = "published" // by this node
	delivered outcome = "delivered" // to a handler
	dropped   outcome = "dropped"   // handlers were too slow
	limited   outcome = "limited"   // its origin said too much
	ignored   outcome = "ignored"   // expired, known, or not to be verified here
	rejected  outcome = "rejected"  // a lie
)

// counts is openmesh_topic_messages_total{outcome}.
type counts struct{ messages *prometheus.CounterVec }

// newCounts registers the counters, or finds those of the host before: a new host
// key comes with a new Gossip.
func newCounts(r prometheus.Registerer) (counts, error) {
	c := counts{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "openmesh_topic_messages_total", Help: "Broadcasts on topics, by what became of them.",
	}, []string{"outcome"})}
	if r != nil {
		err := r.Register(c.messages)
		if was, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
			if c.messages, ok = was.ExistingCollector.(*prometheus.CounterVec); ok {
				err = nil
			}
		}
		if err != nil {
			return c, err
		}
	}
	for _, o := range []outcome{published, delivered, dropped, limited, ignored, rejected} {
		c.messages.WithLabelValues(string(o))
	}
	return c, nil
}

func (c counts) add(o outcome) { c.messages.WithLabelValues(string(o)).Inc() }
