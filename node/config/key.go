package config

import (
	"slices"
	"strings"

	"openmesh/node/config/form"
)

// Key is one setting: a row of the table that drives the file, the environment,
// the flags, the template and the reference.
type Key struct {
	Name    string   // dotted, such as "networking.max_tunnels"
	Type    string   // what is written, such as "duration" or "list of strings"
	Default string   // as in an environment variable
	Allowed string   // values or range, for people
	Values  []string // all the allowed values where they are few, for completion
	Doc     string   // one sentence
	Unbuilt string   // empty, or what holds instead while the feature does not exist

	idle   string // the value that does not need the unbuilt feature
	secret bool   // its value is never shown
	plain  bool   // written without quotes
	shape  form.Shape
	read   func(form.Value, form.Fail)
	write  func() form.Value
}

// Keys returns the table of all keys, in the order of the reference.
func Keys() []Key { return new(Config).keys() }

// Env returns the name of the environment variable that sets the key.
func (k Key) Env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.Name, ".", "_"))
}

// section returns the dotted name of the map that holds the key.
func (k Key) section() string { return k.Name[:strings.LastIndexByte(k.Name, '.')] }

// leaf returns the last part of the key's name.
func (k Key) leaf() string { return k.Name[strings.LastIndexByte(k.Name, '.')+1:] }

// parse gives text the shape that the key needs.
func (k Key) parse(text string, at form.Place) form.Value { return form.ParseText(text, k.shape, at) }

// show returns the effective value, masked if it is a secret.
func (k Key) show() form.Value {
	v := k.write()
	if k.secret {
		v.Text = form.Mask(v.Text)
	}
	return v
}

// key ties a field of a Config to its row. A value that fails leaves the field
// as it was.
func key[T any](name string, field *T, c form.Codec[T], def, doc string) Key {
	return Key{
		Name: name, Type: c.Type, Default: def, Allowed: c.Allowed, Values: c.Values, Doc: doc,
		plain: c.Plain, shape: c.Shape,
		read: func(v form.Value, fail form.Fail) {
			ok := true
			t := c.Read(v, func(v form.Value, why string) { ok = false; fail(v, why) })
			if ok {
				*field = t
			}
		},
		write: func() form.Value { return c.Write(*field) },
	}
}

// unbuilt marks a key whose feature does not exist yet. The value idle needs no
// feature; instead says what holds meanwhile.
func (k Key) unbuilt(idle, instead string) Key {
	k.idle, k.Unbuilt = idle, instead
	return k
}

// masked marks a key whose value is never shown.
func (k Key) masked() Key {
	k.secret = true
	return k
}

// keys is the table, bound to the fields of c.
func (c *Config) keys() []Key {
	return slices.Concat(c.nodeKeys(), c.identityKeys(), c.networkingKeys(), c.discoveryKeys(),
		c.capabilitiesKeys(), c.observabilityKeys(), c.apiKeys(), c.storageKeys(), c.policyKeys(),
		c.relayKeys(), c.mailboxKeys(), c.marketKeys(), c.sessionKeys(), c.signalKeys(), c.auditKeys())
}

// reset sets every field of c to its default.
func (c *Config) reset() {
	*c = Config{places: map[string]form.Place{}}
	for _, k := range c.keys() {
		k.read(k.parse(k.Default, form.Place{Source: "default"}), func(v form.Value, why string) {
			panic("default of " + k.Name + ": " + v.String() + " " + why) // a test loads them all
		})
	}
}
