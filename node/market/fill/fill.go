// Package fill completes the documents of negotiations: people and programs write what
// they mean, and the rest follows from the request, or from the offer that is answered
// or replaced.
package fill

import (
	"bytes"
	"encoding/json"
	"time"

	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// Request sets what the agent knows itself in a request.
func Request(given []byte, buyer identity.AgentID, now time.Time) ([]byte, error) {
	return merge(given, map[string]any{"schema": document.SchemaRFP, "buyer": buyer, "created": now.Format(time.RFC3339)}, nil)
}

// Offer is base with what the document says in place of what it has. The document
// may be of either version.
func Offer(base deal.Proposal, given []byte) ([]byte, error) {
	var named struct{ Schema string }
	_ = json.Unmarshal(given, &named)
	if named.Schema == document.SchemaProposalV1 {
		return old(base, given)
	}
	whole, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	return merge(whole, map[string]any{"schema": document.SchemaProposal, "rfp": base.RFP, "seller": base.Seller, "buyer": base.Buyer}, given)
}

// old is Offer for a document of version 1.0.0.
func old(base deal.Proposal, given []byte) ([]byte, error) {
	whole, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	if whole, err = document.Rewrite(whole, document.SchemaProposal, document.SchemaProposalV1); err != nil {
		return nil, err
	}
	fixed := map[string]any{"schema": document.SchemaProposalV1, "rfp": base.RFP, "seller": base.Seller, "buyer": base.Buyer}
	if whole, err = merge(whole, fixed, given); err != nil {
		return nil, err
	}
	return document.Rewrite(whole, document.SchemaProposalV1, document.SchemaProposal)
}

// merge applies a merge patch (RFC 7396) to a document, and then sets members. The result is canonical.
func merge(given []byte, set map[string]any, patch []byte) ([]byte, error) {
	whole, err := object(given)
	if err != nil {
		return nil, err
	}
	if len(patch) > 0 {
		over, err := object(patch)
		if err != nil {
			return nil, err
		}
		patched(whole, over)
	}
	for name, v := range set {
		whole[name] = v
	}
	text, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return document.Canonical(text, document.MaxDocument)
}

func patched(whole, patch map[string]any) {
	for name, v := range patch {
		inner, isObject := v.(map[string]any)
		switch {
		case v == nil:
			delete(whole, name)
		case isObject:
			target, ok := whole[name].(map[string]any)
			if !ok {
				target = make(map[string]any)
			}
			patched(target, inner)
			whole[name] = target
		default:
			whole[name] = v
		}
	}
}

// object reads a JSON object whose numbers keep their digits.
func object(text []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var whole map[string]any
	if err := d.Decode(&whole); err != nil || whole == nil || d.More() {
		return nil, wire.Errorf(wire.InvalidArgument, "a document that is no JSON object").WithHint("start from: openmesh market rfp example, or openmesh market propose example")
	}
	return whole, nil
}
