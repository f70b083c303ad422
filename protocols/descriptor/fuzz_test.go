package descriptor_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor"
)

// Whatever comes in, nothing panics, and what is accepted is what the agent of
// the golden vectors signed.

func FuzzVerify(f *testing.F) {
	host, cert := goldenAgent(f)
	d, err := descriptor.Seal(host, cert, body())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.Raw)
	f.Add(d.Raw[:len(d.Raw)-1])
	f.Add([]byte{})
	v := verifier()
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := descriptor.Verify(raw, v, cert.Peer, now)
		if err == nil && !proto.Equal(got.Body, d.Body) {
			t.Errorf("accepted %v, which its agent did not sign", got.Body)
		}
	})
}

func FuzzVerifyValue(f *testing.F) {
	host, cert := goldenAgent(f)
	r, err := descriptor.SealRecord(host, cert, goldenRecord())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(descriptor.AgentKey(cert.Agent), descriptor.Value{r}.Marshal())
	f.Add(descriptor.AddressKey(cert.Address), descriptor.Value{r, r}.Marshal())
	v := verifier()
	f.Fuzz(func(t *testing.T, key string, raw []byte) {
		got, err := descriptor.VerifyValue(key, raw, v, now)
		if err == nil && (len(got) != 1 || !proto.Equal(got[0].Body, r.Body)) {
			t.Errorf("accepted %d records under %q", len(got), key)
		}
	})
}
