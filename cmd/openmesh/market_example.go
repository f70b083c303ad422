package main

import (
	"strings"
	"time"
)

// Times in the examples are in the future when they are printed, so that they can
// be posted as they are.

func exampleRFP(now time.Time) []byte {
	return timed(now, `# A request for proposals. Who buys, and when, is filled in.
schema: market/rfp@v1.0.0
item: Translation of a manual, German to English
quantity: 20                  # units: here pages
price:                        # of one unit; amounts are text, in quotes; each end may be left out
  min: "2.00"
  max: "12.50"
  currency: EUR               # ISO 4217
delivery:
  by: "WEEK"
  terms: One file of Markdown a page
deadline: "DAY"  # for the first offer; RFC 3339
capability: text/translation  # sent to those who offer it, and to all who listen for it
version: ^1                   # semantic version range; may be left out
# constraints:
#   regions: [eu-central-1]
#   jurisdictions: [DE, AT]
#   domains: [acme]
#   tags: {from: de, to: en}
#   min_trust: "0.5"
#   min_uptime: "95"
#   max_latency_ms: 200
`)
}

func exampleProposal(now time.Time) []byte {
	return timed(now, `# A proposal. The parties and the request are filled in. In a counteroffer or an
# amendment, what is left out stays as it is in the offer before.
schema: market/proposal@v2.1.0
terms:
  price: {amount: "9.50", currency: EUR} # of one unit; amounts are text, in quotes
  quantity: 20
  delivery:
    by: "WEEK"
    terms: One file of Markdown a page
valid_until: "HOUR"        # RFC 3339; it cannot be accepted later
note: Reviewed by a second translator
`)
}

func timed(now time.Time, text string) []byte {
	stamp := func(d time.Duration) string { return now.Add(d).UTC().Truncate(time.Second).Format(time.RFC3339) }
	const day = 24 * time.Hour
	return []byte(strings.NewReplacer("WEEK", stamp(7*day), "DAY", stamp(day), "HOUR", stamp(time.Hour)).Replace(text))
}

func exampleSchema() []byte {
	return []byte(`{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Details of a request for translations",
  "type": "object",
  "required": ["from", "to"],
  "additionalProperties": false,
  "properties": {
    "from": {"type": "string", "pattern": "^[a-z]{2}$"},
    "to": {"type": "string", "pattern": "^[a-z]{2}$"},
    "glossary": {"type": "string", "format": "uri"}
  }
}
`)
}
