package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	// The standard imports, which a descriptor set may leave out.
	_ "google.golang.org/protobuf/types/known/anypb"
	_ "google.golang.org/protobuf/types/known/apipb"
	_ "google.golang.org/protobuf/types/known/durationpb"
	_ "google.golang.org/protobuf/types/known/emptypb"
	_ "google.golang.org/protobuf/types/known/fieldmaskpb"
	_ "google.golang.org/protobuf/types/known/sourcecontextpb"
	_ "google.golang.org/protobuf/types/known/structpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
	_ "google.golang.org/protobuf/types/known/typepb"
	_ "google.golang.org/protobuf/types/known/wrapperspb"
)

// Standard is the path prefix of files that a descriptor set may leave out.
const Standard = "google/protobuf/"

// CompileProto compiles the message with the given full name, such as
// fx.v1.PriceRequest, from a serialized FileDescriptorSet. The set holds all
// files that the message's file imports, save those under [Standard].
func CompileProto(descriptorSet []byte, message string) (*Schema, error) {
	if len(descriptorSet) > MaxSchema {
		return nil, fmt.Errorf("compile Protobuf schema: %d bytes are more than %d", len(descriptorSet), MaxSchema)
	}
	set := new(descriptorpb.FileDescriptorSet)
	limits := proto.UnmarshalOptions{RecursionLimit: MaxDepth}
	if err := limits.Unmarshal(descriptorSet, set); err != nil {
		return nil, fmt.Errorf("compile Protobuf schema: read descriptor set: %w", err)
	}
	addStandard(set)
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, fmt.Errorf("compile Protobuf schema: %w", err)
	}
	d, err := files.FindDescriptorByName(protoreflect.FullName(message))
	if err != nil {
		return nil, fmt.Errorf("compile Protobuf schema: no message %q in the descriptor set", message)
	}
	desc, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil, fmt.Errorf("compile Protobuf schema: %s is not a message", message)
	}
	return &Schema{desc: desc, types: dynamicpb.NewTypes(files)}, nil
}

// addStandard adds the standard files that the set imports but does not hold.
func addStandard(set *descriptorpb.FileDescriptorSet) {
	have := map[string]bool{}
	for _, f := range set.File {
		have[f.GetName()] = true
	}
	for i := 0; i < len(set.File); i++ { // grows as imports of imports come in
		for _, path := range set.File[i].Dependency {
			if have[path] || !strings.HasPrefix(path, Standard) {
				continue
			}
			have[path] = true
			if f, err := protoregistry.GlobalFiles.FindFileByPath(path); err == nil {
				set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
			}
		}
	}
}

// message decodes body.
func (s *Schema) message(body []byte, enc Encoding) (proto.Message, *Invalid) {
	m := dynamicpb.NewMessage(s.desc)
	switch enc {
	case Protobuf:
		opts := proto.UnmarshalOptions{RecursionLimit: MaxDepth, Resolver: s.types}
		if err := opts.Unmarshal(body, m); err != nil {
			return nil, malformed("not a %s: %v", s.desc.FullName(), err)
		}
		return m, nil
	case JSON:
		opts := protojson.UnmarshalOptions{RecursionLimit: MaxDepth, Resolver: s.types}
		if err := opts.Unmarshal(body, m); err != nil {
			if _, inv := decode(body); inv != nil {
				return nil, inv
			}
			return nil, &Invalid{
				Pointers: []string{locate(body, offsetOf(body, err))},
				Reasons:  []string{fmt.Sprintf("does not fit %s", s.desc.FullName())},
				Err:      err,
			}
		}
		return m, nil
	}
	return nil, malformed("unknown %s", enc)
}

// text is m as ProtoJSON. The compaction takes out the spaces that protojson
// puts in at random.
func (s *Schema) text(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{Resolver: s.types}.Marshal(m)
	if err != nil { // an Any of unknown type, a Timestamp out of range
		return nil, &Invalid{Pointers: []string{""}, Reasons: []string{"has no JSON form"}, Err: err}
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, fmt.Errorf("compact ProtoJSON: %w", err)
	}
	return out.Bytes(), nil
}

// offsetOf finds where in body protojson met err. It has only the text for it;
// should that change, the result is -1 and the pointer that of the whole body.
func offsetOf(body []byte, err error) int {
	at := regexp.MustCompile(`\(line (\d+):(\d+)\)`).FindStringSubmatch(err.Error())
	if at == nil {
		return -1
	}
	line, _ := strconv.Atoi(at[1])
	column, _ := strconv.Atoi(at[2])
	offset := 0
	for ; line > 1; line-- {
		n := bytes.IndexByte(body[offset:], '\n')
		if n < 0 {
			return -1
		}
		offset += n + 1
	}
	for i := range string(body[offset:]) { // columns count characters
		if column--; column == 0 {
			return offset + i
		}
	}
	return -1
}

// locate returns the pointer of the innermost value (or its name) at an offset
// into body, which is known to be JSON.
func locate(body []byte, offset int) string {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	steps, _ := seek(d, int64(offset))
	return pointer(steps)
}

// seek reads one value. It stops at the offset, if that is in the value, and
// returns the steps from the value to there.
func seek(d *json.Decoder, offset int64) (steps []string, found bool) {
	open, _ := d.Token()
	if d.InputOffset() > offset {
		return nil, true
	}
	if _, nests := open.(json.Delim); !nests {
		return nil, false
	}
	for i := 0; d.More(); i++ {
		step := strconv.Itoa(i)
		if open == json.Delim('{') {
			name, _ := d.Token()
			step, _ = name.(string)
			found = d.InputOffset() > offset
		}
		if !found {
			steps, found = seek(d, offset)
		}
		if found {
			return append([]string{step}, steps...), true
		}
	}
	_, _ = d.Token() // the closing bracket
	return nil, d.InputOffset() > offset
}
