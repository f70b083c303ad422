package rule

import (
	"fmt"
	"slices"
	"strings"
)

const maxPointer = 512 // bytes of a pointer, in a file and in an error

// Pointer is a place in a document, as in RFC 6901. None is the document.
type Pointer []string

// ParsePointer reads a pointer of at most 512 bytes and [MaxDepth] names; "" is
// that of the document.
func ParsePointer(s string) (Pointer, error) {
	if s == "" {
		return nil, nil
	}
	if len(s) > maxPointer || strings.Count(s, "/") > MaxDepth {
		return nil, fmt.Errorf("a pointer of more than %d bytes or %d names", maxPointer, MaxDepth)
	}
	if s[0] != '/' {
		return nil, fmt.Errorf("pointer %q does not start with /", s)
	}
	if strings.Count(s, "~") != strings.Count(s, "~0")+strings.Count(s, "~1") {
		return nil, fmt.Errorf("pointer %q has ~ without 0 or 1 after it", s)
	}
	p := Pointer(strings.Split(s[1:], "/"))
	for i, name := range p {
		p[i] = strings.ReplaceAll(strings.ReplaceAll(name, "~1", "/"), "~0", "~")
	}
	return p, nil
}

// String returns the pointer as it is written; one that is too long is cut to
// that of a parent.
func (p Pointer) String() string {
	var b strings.Builder
	for _, name := range p {
		name = strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
		if b.Len()+1+len(name) > maxPointer {
			break
		}
		b.WriteByte('/')
		b.WriteString(name)
	}
	return b.String()
}

// shown is a place in a sentence.
func (p Pointer) shown() string {
	if len(p) == 0 {
		return "the document"
	}
	return p.String()
}

// within reports whether p is q or a place in it, and where there.
func (p Pointer) within(q Pointer) (rest Pointer, ok bool) {
	if len(p) < len(q) || !slices.Equal(p[:len(q)], q) {
		return nil, false
	}
	return p[len(q):], true
}

// join returns the place q in the value at p.
func (p Pointer) join(q ...string) Pointer { return append(slices.Clip(p), q...) }

// get returns the value at p, if there is one.
func get(root any, p Pointer) (v any, there bool, err error) {
	v = root
	for i, name := range p {
		object, ok := v.(map[string]any)
		if !ok {
			return nil, false, notObject(p[:i], v)
		}
		if v, there = object[name]; !there {
			return nil, false, nil
		}
	}
	return v, true, nil
}

// take removes the value at p, if there is one, and the objects on the way to
// it that become empty, save the document itself.
func (r *run) take(root *any, p Pointer) (v any, there bool, err error) {
	if v, there, err = get(*root, p); !there {
		return nil, false, err
	}
	if len(p) == 0 {
		*root = map[string]any{}
		return v, true, nil
	}
	objects := make([]map[string]any, len(p))
	objects[0], _ = (*root).(map[string]any)
	for i, name := range p[:len(p)-1] {
		objects[i+1], _ = objects[i][name].(map[string]any)
	}
	for i, object := range slices.Backward(objects) {
		delete(object, p[i])
		if err := r.grow(-len(p[i]) - fieldCost); err != nil {
			return nil, false, err
		}
		if len(object) > 0 {
			break
		}
	}
	return v, true, nil
}

const fieldCost = 6 // bytes of a field beside name and value: quotes, colon, comma, maybe brackets

// put puts v at p, where nothing may be, and makes the objects on the way. An
// empty one is refused: take would not leave it behind.
func (r *run) put(root *any, p Pointer, v any) error {
	object, ok := (*root).(map[string]any)
	switch {
	case len(p) == 0 && (!ok || len(object) > 0):
		return inTheWay(p)
	case len(p) == 0:
		*root = v
		return nil
	case !ok:
		return notObject(nil, *root)
	}
	for i, name := range p[:len(p)-1] {
		next, there := object[name]
		if !there {
			next = map[string]any{}
			object[name] = next
			if err := r.grow(len(name) + fieldCost); err != nil {
				return err
			}
		}
		if object, ok = next.(map[string]any); !ok {
			return notObject(p[:i+1], next)
		}
		if there && len(object) == 0 {
			return misfitf(p[:i+1], "is an empty object, which the way back would lose")
		}
	}
	last := p[len(p)-1]
	if _, there := object[last]; there {
		return inTheWay(p)
	}
	object[last] = v
	return r.grow(len(last) + fieldCost)
}

// vacant refuses a document that has a value at p.
func vacant(root any, p Pointer) error {
	_, there, err := get(root, p)
	if there {
		return inTheWay(p)
	}
	return err
}

func inTheWay(p Pointer) error {
	return misfitf(p, "is in the way of a value that is to be put there")
}

func notObject(p Pointer, v any) error {
	if _, ok := v.([]any); ok {
		return misfitf(p, "is an array, where an object is wanted")
	}
	return misfitf(p, "is not an object")
}
