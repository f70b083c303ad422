package schema

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

const source = `syntax = "proto3";
package fx.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/any.proto";
enum Side { SIDE_UNSPECIFIED = 0; SIDE_BUY = 1; }
message Request {
  string pair = 1;
  int64 amount = 2;
  Side side = 3;
  google.protobuf.Timestamp at = 4;
  repeated Leg legs = 5;
  google.protobuf.Any extra = 6;
  Request again = 7;
}
message Leg { int32 days = 1; }
service Pricing { rpc Price(Request) returns (Request); }
`

// describe compiles source to a descriptor set without the standard imports.
func describe(t testing.TB) []byte {
	t.Helper()
	c := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
		Accessor: protocompile.SourceAccessorFromMap(map[string]string{"fx.proto": source}),
	})}
	files, err := c.Compile(context.Background(), "fx.proto")
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protoutil.ProtoFromFileDescriptor(files[0])}}
	b, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compileProto(t testing.TB) *Schema {
	t.Helper()
	s, err := CompileProto(describe(t), "fx.v1.Request")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestProtoPointers(t *testing.T) {
	t.Parallel()
	s := compileProto(t)
	whole := []string{""}
	for name, tc := range map[string]struct {
		body string
		want []string
	}{
		"fits":          {`{"pair":"EURUSD","amount":"9007199254740993","side":"SIDE_BUY","at":"2026-01-02T03:04:05Z","legs":[{"days":2}]}`, nil},
		"number":        {`{"amount":9007199254740993}`, nil},
		"unknown":       {`{"pair":"EURUSD","colour":"red"}`, []string{"/colour"}},
		"on line three": {"{\n\"pair\": \"é\",\n  \"legs\": [{}, {\"dayz\": 1}]}", []string{"/legs/1/dayz"}},
		"wrong type":    {`{"legs":[{"days":"soon"}]}`, []string{"/legs/0/days"}},
		"unknown enum":  {`{"side":"SIDE_UP"}`, []string{"/side"}},
		"not JSON":      {`{"pair":`, whole},
		"unlinked Any":  {`{"extra":{"@type":"type.googleapis.com/google.protobuf.Struct","value":{}}}`, []string{"/extra/@type"}},
		"too deep":      {strings.Repeat(`{"again":`, 200) + "{}" + strings.Repeat("}", 200), whole},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := s.Validate([]byte(tc.body), JSON)
			if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != (tc.want != nil) {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestConvert(t *testing.T) {
	t.Parallel()
	s := compileProto(t)
	const text = `{"pair":"EURUSD","amount":"9007199254740993","legs":[{"days":2},{}]}`
	wire, err := s.Convert([]byte(text), JSON, Protobuf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Validate(wire, Protobuf); err != nil {
		t.Error(err)
	}
	back, err := s.Convert(wire, Protobuf, JSON)
	if err != nil || string(back) != text {
		t.Errorf("%s, %v", back, err)
	}
	for name, tc := range map[string]struct {
		body     string
		from, to Encoding
	}{
		"cut short":         {string(wire[:len(wire)-1]), Protobuf, JSON},
		"unknown field":     {`{"x":1}`, JSON, Protobuf},
		"unknown encoding":  {`{}`, 7, JSON},
		"same, invalid":     {`{"x":1}`, JSON, JSON},
		"time out of range": {"\x22\x0a\x08\x80\x80\x80\x80\x80\x80\x80\x80\x40", Protobuf, JSON},
	} {
		var inv *Invalid
		if _, err := s.Convert([]byte(tc.body), tc.from, tc.to); !errors.As(err, &inv) || len(inv.Pointers) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := compileJSON(t, `{}`).Convert([]byte(`{}`), JSON, Protobuf); err == nil {
		t.Error("converted by a JSON schema")
	}
}

func TestCompileProtoRefuses(t *testing.T) {
	t.Parallel()
	set := describe(t)
	missing, _ := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{
		{Name: proto.String("a.proto"), Dependency: []string{"b.proto"}},
	}})
	for name, tc := range map[string]struct {
		set           []byte
		message, want string
	}{
		"garbage":        {[]byte("\xff\xff"), "a.B", "read descriptor set"},
		"too large":      {make([]byte, MaxSchema+1), "a.B", "more than 32768"},
		"no such":        {set, "fx.v1.None", "no message"},
		"a service":      {set, "fx.v1.Pricing", "not a message"},
		"empty name":     {set, "", "no message"},
		"missing import": {missing, "a.B", "b.proto"},
	} {
		if _, err := CompileProto(tc.set, tc.message); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzProto(f *testing.F) {
	set := describe(f)
	f.Add(set, []byte(`{"pair":"EURUSD"}`))
	f.Add(set, []byte("\n\x06EURUSD"))
	f.Fuzz(func(t *testing.T, set, body []byte) {
		s, err := CompileProto(set, "fx.v1.Request")
		if err != nil {
			return
		}
		for _, enc := range []Encoding{JSON, Protobuf} {
			pointers, err := s.Validate(body, enc)
			if (err == nil) != (pointers == nil) {
				t.Fatalf("%v, %q", err, pointers)
			}
			_, _ = s.Convert(body, enc, JSON+Protobuf-enc)
		}
	})
}
