package kad

import (
	"errors"

	"openmesh/protocols/descriptor"
)

// validator decides which values may be stored and which of several is best
// (go-libp2p-record's Validator).
type validator struct {
	verify func(key string, value []byte) (descriptor.Value, error)
}

// Validate refuses a value whose signature, certificate chain, puzzle, lifetime
// or key does not hold.
func (v validator) Validate(key string, value []byte) error {
	_, err := v.verify(key, value)
	return err
}

// Select returns the index of the best value. What no longer holds is passed
// over: it may have held when it was stored.
func (v validator) Select(key string, values [][]byte) (int, error) {
	claims := make([][]descriptor.Claim, 0, len(values))
	index := make([]int, 0, len(values))
	for i, raw := range values {
		if val, err := v.verify(key, raw); err == nil {
			claims, index = append(claims, val.Claims()), append(index, i)
		}
	}
	best := descriptor.Select(claims)
	if best < 0 {
		return 0, errors.New("no valid value to select from")
	}
	return index[best], nil
}

// merge returns the value that has every agent's claim of a and b; either may
// be invalid or empty. If neither holds, it is b.
func (v validator) merge(key string, a, b []byte) []byte {
	va, errA := v.verify(key, a)
	vb, errB := v.verify(key, b)
	if errA != nil || errB != nil {
		return b
	}
	return va.Merge(vb).Marshal()
}
