package schema

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func compileJSON(t testing.TB, text string) *Schema {
	t.Helper()
	s, err := CompileJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func nested(depth int) string {
	return strings.Repeat(`{"n":`, depth) + "1" + strings.Repeat("}", depth)
}

func TestPointers(t *testing.T) {
	t.Parallel()
	whole := []string{""}
	for name, tc := range map[string]struct {
		schema, body string
		want         []string // nil: valid
	}{
		"fits":                 {`{"type":"object","required":["pair"]}`, `{"pair":"EURUSD"}`, nil},
		"missing":              {`{"required":["pair","side"]}`, `{}`, []string{"/pair", "/side"}},
		"missing within":       {`{"properties":{"a":{"items":{"required":["b"]}}}}`, `{"a":[{"b":1},{}]}`, []string{"/a/1/b"}},
		"sorted":               {`{"additionalProperties":{"type":"string"}}`, `{"z":1,"a":2,"m":"x"}`, []string{"/a", "/z"}},
		"once":                 {`{"properties":{"a":{"minimum":5,"multipleOf":3,"enum":[6]}},"allOf":[{"properties":{"a":{"const":6}}}]}`, `{"a":1}`, []string{"/a"}},
		"escaped":              {`{"additionalProperties":false}`, `{"a/b":1,"c~d":2}`, []string{"/a~1b", "/c~0d"}},
		"alternatives":         {`{"properties":{"a":{"oneOf":[{"type":"string"},{"required":["x"]}]}}}`, `{"a":{}}`, []string{"/a", "/a/x"}},
		"two alternatives":     {`{"oneOf":[{"type":"number"},{"minimum":1}]}`, `2`, whole},
		"not":                  {`{"properties":{"a":{"not":{"type":"null"}}}}`, `{"a":null}`, []string{"/a"}},
		"condition":            {`{"if":{"required":["a"]},"then":{"required":["b"]},"else":{"required":["c"]}}`, `{"a":1}`, []string{"/b"}},
		"dependent":            {`{"dependentRequired":{"a":["b"]},"dependencies":{"a":["c"]}}`, `{"a":1}`, []string{"/b", "/c"}},
		"name":                 {`{"propertyNames":{"maxLength":1}}`, `{"a":1,"bc":2}`, []string{"/bc"}},
		"name within":          {`{"additionalProperties":{"propertyNames":{"maxLength":1}}}`, `{"a":{"bc":1},"b":{"c":1}}`, whole},
		"no element":           {`{"properties":{"a":{"contains":true}}}`, `{"a":[]}`, []string{"/a"}},
		"several anchors":      {`{"$id":"https://a.example/","$dynamicRef":"#x","$defs":{"a":{"$dynamicAnchor":"x","type":"null"},"b":{"$id":"b","$dynamicAnchor":"x"}}}`, `1`, whole},
		"left over":            {`{"allOf":[{"properties":{"a":true}}],"unevaluatedProperties":false}`, `{"a":1,"b":2}`, []string{"/b"}},
		"no more than 16":      {`{"items":{"type":"string"}}`, "[" + strings.Repeat("1,", 99) + "1]", firstOf(100, 16)},
		"long name cut":        {`{"additionalProperties":false}`, `{"` + strings.Repeat("x", maxPointer) + `":1}`, whole},
		"big integers differ":  {`{"properties":{"a":{"const":9007199254740993}}}`, `{"a":9007199254740992}`, []string{"/a"}},
		"big integers agree":   {`{"const":9007199254740993}`, `9007199254740993.0`, nil},
		"last of equal counts": {`{"properties":{"a":{"const":2}}}`, `{"a":1,"a":2}`, nil},
		"truncated":            {`{}`, `{"a":`, whole},
		"empty":                {`{}`, ``, whole},
		"trailing":             {`{}`, `{} {}`, whole},
		"not UTF-8":            {`{}`, "\"\xff\"", whole},
		"too deep":             {`{}`, nested(MaxDepth + 1), whole},
		"deep enough":          {`{}`, nested(MaxDepth), nil},
		"long number":          {`{}`, strings.Repeat("1", maxNumber+1), whole},
		"huge exponent":        {`{"minimum":1}`, `1e999999999`, whole},
		"circular":             {`{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}`, `1`, whole},
		"meta-schema":          {`{"$ref":"https://json-schema.org/draft/2020-12/schema"}`, `{"properties":{"a":{"type":"strin"}}}`, []string{"/properties/a/type"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := compileJSON(t, tc.schema).Validate([]byte(tc.body), JSON)
			if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != (tc.want != nil) {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			var inv *Invalid
			if err != nil && !errors.As(err, &inv) {
				t.Errorf("%T is not an Invalid", err)
			}
		})
	}
}

// firstOf returns the first so many, in order, of the pointers to n elements.
func firstOf(n, many int) (ps []string) {
	for i := range n {
		ps = append(ps, fmt.Sprintf("/%d", i))
	}
	slices.Sort(ps)
	return ps[:many]
}

func TestMalformed(t *testing.T) {
	t.Parallel()
	s := compileJSON(t, `{"type":"object"}`)
	if _, err := s.Validate([]byte(`{`), JSON); !errors.Is(err, ErrMalformed) {
		t.Errorf("cut short: %v", err)
	}
	if _, err := s.Validate([]byte(`[]`), JSON); err == nil || errors.Is(err, ErrMalformed) {
		t.Errorf("wrong type: %v", err)
	}
}

func TestNilSchema(t *testing.T) {
	t.Parallel()
	var s *Schema
	if _, err := s.Validate([]byte(`[1, "a"]`), JSON); err != nil {
		t.Error(err)
	}
	for _, enc := range []Encoding{0, JSON, Protobuf} {
		if _, err := s.Validate([]byte(`[1`), enc); err == nil {
			t.Errorf("%s: accepted", enc)
		}
	}
	if _, err := s.Convert([]byte(`{}`), JSON, Protobuf); err == nil {
		t.Error("converted without a Protobuf schema")
	}
	if got, err := s.Convert([]byte(`{}`), JSON, JSON); err != nil || string(got) != "{}" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestErrorsQuoteNoValues(t *testing.T) {
	t.Parallel()
	s := compileJSON(t, `{"properties":{"a":{"enum":["x"],"type":"string","pattern":"^b"}}}`)
	_, err := s.Validate([]byte(`{"a":"hunter2"}`), JSON)
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func TestCompileJSONRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"not JSON":      {`{`, "not JSON"},
		"not a schema":  {`3`, "got number"},
		"wrong keyword": {`{"properties":{"a":{"type":"strin"}}}`, `at "/properties/a/type": value must be one of`},
		"too large":     {`{"title":"` + strings.Repeat("x", MaxSchema) + `"}`, "more than 32768"},
		"too deep":      {strings.Repeat(`{"not":`, 200) + "{}" + strings.Repeat("}", 200), "within each other"},
		"file":          {`{"$ref":"file:///etc/passwd"}`, "outside of the document"},
		"network":       {`{"$ref":"https://example.com/schema.json"}`, "outside of the document"},
		"relative":      {`{"$ref":"other.json"}`, "outside of the document"},
		"dangling":      {`{"$ref":"#/$defs/none"}`, "not found"},
		"other draft":   {`{"$schema":"http://json-schema.org/draft-07/schema#"}`, "2020-12"},
		"unknown draft": {`{"$schema":"https://example.com/draft"}`, "outside of the document"},
		"bad pattern":   {`{"pattern":"("}`, "missing closing"},
		"huge exponent": {`{"minimum":1e999999999}`, "exponent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := CompileJSON([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// keywords are schemas that between them use every keyword.
var keywords = []string{
	`{"type":["integer","null"],"minimum":-2,"exclusiveMaximum":7,"multipleOf":0.5}`,
	`{"type":"string","minLength":1,"maxLength":3,"pattern":"^[a-c]+$"}`,
	`{"properties":{"a":{"type":"integer"},"b":{"const":1.0}},"patternProperties":{"^x":{"type":"string"}},"additionalProperties":{"type":"boolean"},"minProperties":1,"maxProperties":3}`,
	`{"required":["a"],"propertyNames":{"maxLength":2},"dependentRequired":{"b":["c"]},"dependentSchemas":{"c":{"properties":{"a":{"type":"null"}}}}}`,
	`{"prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"boolean"},"minItems":1,"maxItems":4}`,
	`{"contains":{"type":"integer"},"minContains":1,"maxContains":2,"uniqueItems":true}`,
	`{"allOf":[{"properties":{"a":true}}],"anyOf":[{"properties":{"b":{"type":"integer"}},"required":["b"]},{"properties":{"c":true}}],"unevaluatedProperties":false}`,
	`{"prefixItems":[true],"contains":{"type":"string"},"unevaluatedItems":{"type":"null"}}`,
	`{"if":{"properties":{"a":{"const":1}}},"then":{"required":["b"]},"else":{"not":{"required":["b"]}},"unevaluatedProperties":{"type":"integer"}}`,
	`{"oneOf":[{"properties":{"a":{"type":"integer"}}},{"properties":{"a":{"minimum":2}}},{"enum":[{"a":"x"},[1,2]]}]}`,
	`{"$defs":{"n":{"type":["object","integer"],"properties":{"a":{"$ref":"#/$defs/n"},"b":{"$ref":"#/$defs/n"}},"additionalProperties":false}},"$ref":"#/$defs/n"}`,
	`{"$dynamicAnchor":"t","properties":{"a":{"$dynamicRef":"#t"}},"unevaluatedProperties":false}`,
	`{"$ref":"https://json-schema.org/draft/2020-12/schema"}`,
	`{"dependencies":{"a":["b"],"b":{"required":["c"]}}}`,
	`false`, `true`,
}

// checkReport fails unless s gives a body the same sound report twice.
func checkReport(t *testing.T, s *Schema, body []byte) {
	t.Helper()
	pointers, err := s.Validate(body, JSON)
	if (err == nil) != (pointers == nil) || len(pointers) > MaxPointers {
		t.Fatalf("%v, %q", err, pointers)
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(pointers))); !slices.Equal(sorted, pointers) {
		t.Fatalf("%q are not sorted or not different", pointers)
	}
	if _, again := s.Validate(body, JSON); fmt.Sprint(again) != fmt.Sprint(err) {
		t.Fatalf("first %v, then %v", err, again)
	}
}

func FuzzValidate(f *testing.F) {
	for i := range keywords {
		f.Add(uint8(i), []byte(`{"a":{"a":1},"b":[1,"a",null]}`))
		f.Add(uint8(i), []byte(`[1,1.0,"ab",{"x":1e3}]`))
	}
	f.Fuzz(func(t *testing.T, pick uint8, body []byte) {
		checkReport(t, compileJSON(t, keywords[int(pick)%len(keywords)]), body)
	})
}

func FuzzCompileJSON(f *testing.F) {
	for _, text := range keywords {
		f.Add([]byte(text), []byte(`{"a":[1,{"b":"x"}]}`))
	}
	f.Fuzz(func(t *testing.T, text, body []byte) {
		s, err := CompileJSON(text)
		if err != nil || len(body) > 100 { // a schema may ask for time exponential in depth
			return
		}
		checkReport(t, s, body)
	})
}

func BenchmarkValidate(b *testing.B) {
	s := compileJSON(b, `{"type":"object","required":["pair","side"],"additionalProperties":false,"properties":{
		"pair":{"type":"string","pattern":"^[A-Z]{6}$"},"side":{"enum":["buy","sell"]},"amount":{"type":"number","minimum":0},
		"note":{"type":"string","maxLength":400},"legs":{"type":"array","items":{"type":"integer"}}}}`)
	body := []byte(`{"pair":"EURUSD","side":"buy","amount":1250.75,"legs":[1,2,3,4],"note":"` + strings.Repeat("x", 180) + `"}`)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Validate(body, JSON); err != nil {
			b.Fatal(err)
		}
	}
}
