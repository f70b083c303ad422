package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// jsonCodec is the JSON that scripts see: field names as in the proto files,
// fields at their zero value present, lists never null. Connect's own codec
// says lowerCamelCase and leaves zeroes out. Both spellings are read. An
// unknown field is an error: a misspelt min_trust must not be no min_trust.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("marshal %T: not a protobuf message", message)
	}
	return MarshalJSON(m)
}

func (c jsonCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal into %T: not a protobuf message", message)
	}
	if len(bytes.TrimSpace(data)) == 0 { // curl -X POST without a body
		return nil
	}
	return protojson.Unmarshal(data, m)
}

// MarshalJSON returns m as the local API's JSON, on one line.
func MarshalJSON(m proto.Message) ([]byte, error) {
	loose, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var line bytes.Buffer // protojson varies its spaces on purpose
	err = json.Compact(&line, loose)
	return line.Bytes(), err
}
