package capability

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"openmesh/protocols/schema"
)

// ProtoSources compiles a .proto file, relative to dir, and all that it imports
// to a serialized FileDescriptorSet for [schema.CompileProto]. Imports are
// looked for in dir and in the file's own folder; the standard ones
// (google/protobuf/…) are known and left out. It is an error if the file has
// no such message.
func ProtoSources(dir, file, message string) (descriptorSet []byte, err error) {
	name, paths := filepath.ToSlash(filepath.Clean(file)), []string{dir, filepath.Join(dir, filepath.Dir(file))}
	if filepath.IsAbs(file) || strings.HasPrefix(name, "../") {
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		name, paths = filepath.Base(file), []string{filepath.Dir(file)}
	}
	c := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: paths, Accessor: openSource}),
		MaxParallelism: 1,
	}
	files, err := c.Compile(context.Background(), name)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", file, err)
	}
	if _, ok := files[0].FindDescriptorByName(protoreflect.FullName(message)).(protoreflect.MessageDescriptor); !ok {
		return nil, fmt.Errorf("compile %s: no message %q in it", file, message)
	}
	set := new(descriptorpb.FileDescriptorSet)
	collect(set, files[0], map[string]bool{})
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", file, err)
	}
	return b, nil
}

// collect appends f to the set, after what it imports.
func collect(set *descriptorpb.FileDescriptorSet, f protoreflect.FileDescriptor, have map[string]bool) {
	if have[f.Path()] || strings.HasPrefix(f.Path(), schema.Standard) {
		return
	}
	have[f.Path()] = true
	for i := range f.Imports().Len() {
		collect(set, f.Imports().Get(i).FileDescriptor, have)
	}
	set.File = append(set.File, protoutil.ProtoFromFileDescriptor(f))
}

// openSource reads a regular file of reasonable size.
func openSource(path string) (io.ReadCloser, error) {
	const most = 1 << 20
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, most)
	}
	b, err := os.ReadFile(path)
	return io.NopCloser(bytes.NewReader(b)), err
}
