package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"openmesh/protocols/wire"
)

// readJSON returns the JSON of a document that is JSON or YAML. JSON stays as it
// is, byte for byte.
func (p *program) readJSON(name string) (string, error) {
	text, _, err := p.readDocument(name)
	if err != nil || json.Valid([]byte(text)) {
		return text, err
	}
	doc, err := jsonOfYAML([]byte(text))
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil {
		where := at.GetToken().Position
		return "", wire.Errorf(wire.InvalidArgument, "%s:%d:%d: %s", name, where.Line, where.Column, at.GetMessage()).
			WithHint("FILE is JSON or YAML")
	}
	if err != nil {
		return "", wire.Errorf(wire.InvalidArgument, "read %s: %w", name, err).WithHint("FILE is one document of JSON or YAML")
	}
	return doc, nil
}

func jsonOfYAML(text []byte) (string, error) {
	in := yaml.NewDecoder(bytes.NewReader(text), yaml.UseOrderedMap())
	var doc, more any
	if err := in.Decode(&doc); errors.Is(err, io.EOF) || err == nil && doc == nil {
		return "", errors.New("nothing is in it")
	} else if err != nil {
		return "", err
	}
	if err := in.Decode(&more); !errors.Is(err, io.EOF) {
		return "", errors.New("more than one document is in it")
	}
	out, err := yaml.MarshalWithOptions(doc, yaml.JSON())
	if err == nil && !json.Valid(out) {
		err = errors.New("a value in it, such as .inf, has no JSON form")
	}
	return string(bytes.TrimSpace(out)), err
}

// showPlain is show for messages that carry documents: see [plain].
func (p *program) showPlain(m proto.Message, human func(*page)) error {
	if !p.json {
		return p.print(human)
	}
	doc, err := plain(m)
	if err != nil {
		return err
	}
	return p.document(doc)
}

// plain is a message as scripts like it best: members in the order of the proto
// file, numbers as numbers whatever their size, a message that is not there as null,
// and the text of a document (member json), if there is one, as the document itself
// (member document).
func plain(m proto.Message) ([]byte, error) {
	var b bytes.Buffer
	if err := plainMessage(&b, m.ProtoReflect()); err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	return b.Bytes(), nil
}

func plainMessage(b *bytes.Buffer, m protoreflect.Message) error {
	if !m.IsValid() {
		b.WriteString("null")
		return nil
	}
	fields := m.Descriptor().Fields()
	next := byte('{')
	for i := range fields.Len() {
		f, v := fields.Get(i), m.Get(fields.Get(i))
		document := f.Name() == "json" && f.Kind() == protoreflect.StringKind
		if document && v.String() == "" {
			continue
		}
		b.WriteByte(next)
		next = ','
		var err error
		if document {
			b.WriteString(`"document":`)
			err = plainValue(b, rawJSON(v.String()))
		} else {
			fmt.Fprintf(b, "%q:", f.Name())
			err = plainField(b, f, v)
		}
		if err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

func plainField(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	one := func(v protoreflect.Value) error {
		if f.Kind() == protoreflect.MessageKind {
			return plainMessage(b, v.Message())
		}
		return plainValue(b, v.Interface())
	}
	if !f.IsList() {
		return one(v)
	}
	b.WriteByte('[')
	for i := range v.List().Len() {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := one(v.List().Get(i)); err != nil {
			return err
		}
	}
	b.WriteByte(']')
	return nil
}

func plainValue(b *bytes.Buffer, v any) error {
	if raw, ok := v.([]byte); ok && raw == nil {
		v = []byte{} // no bytes are "", as protojson has it
	}
	text, err := oneLine(v)
	b.Write(bytes.TrimSuffix(text, []byte("\n")))
	return err
}
