package signal_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// exchange makes an offer to a server and returns what confirms the session.
func exchange(t *testing.T, s *signal.Server, to *protocoltest.Agent) (*signal.Established, []byte, error) {
	t.Helper()
	a := protocoltest.NewAgent(t, lab, time.Now())
	i, offer, err := signal.NewOffer(signal.Local{Certificate: a.Certificate, Key: a.Host}, to.Agent,
		signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()}, time.Now())
	must(t, err)
	reply, err := s.Exchange(string(a.Agent), offer)
	must(t, err)
	return i.Finish(reply, identity.NewVerifier(lab, time.Now), time.Now())
}

// A Confirm may be late, by both sides' load, as long as there is room for others.
func TestLateConfirm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		agent := protocoltest.NewAgent(t, lab, time.Now())
		s := signal.NewServer(signal.Config{
			Local:    func() signal.Local { return signal.Local{Certificate: agent.Certificate, Key: agent.Host} },
			Verifier: identity.NewVerifier(lab, time.Now),
			Terms:    func() signal.Terms { return signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()} },
			Timeout:  10 * time.Second, MaxPending: 2, Log: zap.NewNop(),
		})
		wait := func(d time.Duration) {
			time.Sleep(d)
			s.Sweep(time.Now())
		}
		begin := func() (*signal.Established, []byte) {
			est, confirm, err := exchange(t, s, agent)
			must(t, err)
			return est, confirm
		}
		want := func(what string, est *signal.Established, confirm []byte, code wire.Code) {
			if _, err := s.Confirm("", est.ID, confirm); code == 0 && err != nil || code != 0 && wire.CodeOf(err) != code {
				t.Errorf("%s: %v, want %v", what, err, code)
			}
		}

		est, confirm := begin()
		wait(59 * time.Second)
		want("late, with room", est, confirm, 0)
		want("twice", est, confirm, wire.NotFound)

		est, confirm = begin()
		wait(61 * time.Second)
		want("too late", est, confirm, wire.NotFound)

		est, confirm = begin()
		wait(9 * time.Second)
		young, youngConfirm := begin()
		if _, _, err := exchange(t, s, agent); wire.CodeOf(err) != wire.ResourceExhausted {
			t.Errorf("without room: %v", err)
		}
		wait(2 * time.Second)
		last, lastConfirm := begin()
		want("gave way", est, confirm, wire.NotFound)
		want("in time", young, youngConfirm, 0)
		want("after another gave way", last, lastConfirm, 0)
	})
}
