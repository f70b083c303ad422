package form_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"openmesh/node/config/form"
)

// What a codec writes, it reads: also through the one-line form.
func TestWrittenIsRead(t *testing.T) {
	t.Parallel()
	t.Run("duration", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			d := time.Duration(rapid.Int64Range(0, int64(100*form.Day)).Draw(t, "d"))
			unit := rapid.SampledFrom([]time.Duration{1, time.Millisecond, time.Second, time.Minute, time.Hour, form.Day}).Draw(t, "unit")
			same(t, form.Duration(0, 100*form.Day), d.Truncate(unit))
		})
	})
	t.Run("size", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.IntRange(0, 1024).Draw(t, "n") * rapid.SampledFrom([]int{1, form.KiB, form.MiB}).Draw(t, "unit")
			same(t, form.Size(0, form.GiB), n)
		})
	})
	t.Run("number", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) { same(t, form.Number(0, 1e9), rapid.Float64Range(0, 1e9).Draw(t, "f")) })
	})
}

func same[T comparable](t *rapid.T, c form.Codec[T], want T) {
	text := c.Write(want).String()
	got := c.Read(form.ParseText(text, c.Shape, form.Place{}), func(_ form.Value, why string) { t.Fatalf("%v written as %q %s", want, text, why) })
	if got != want {
		t.Fatalf("%v written as %q is read as %v", want, text, got)
	}
}

func TestParseText(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		text  string
		shape form.Shape
		items int
		want  string
	}{
		{"a, b", form.Scalar, 0, "a, b"},
		{"", form.Listing, 0, ""},
		{" a ,b,", form.Listing, 3, "a,b,"},
		{" ; x", form.Mapping, 2, ";x"},
		{"x=a,b;y = c", form.Mapping, 2, "x=a,b;y=c"},
		{"x=;y=", form.Mapping, 2, "x=;y="},
	} {
		v := form.ParseText(tc.text, tc.shape, form.Place{})
		if len(v.Items) != tc.items || v.String() != tc.want {
			t.Errorf("ParseText(%q, %v) = %q with %d items, want %q with %d", tc.text, tc.shape, v, len(v.Items), tc.want, tc.items)
		}
	}
}

func TestMask(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                   "",
		"postgres://h/d":                     "postgres://h/d",
		"postgres://u:p@h/d":                 "postgres://u:xxxxx@h/d",
		"postgres://h/d?user=u&Password=p":   "postgres://h/d?Password=xxxxx&user=u",
		"postgres://h/d?sslpassword=p&a=b":   "postgres://h/d?a=b&sslpassword=xxxxx",
		"postgres://u:p@h:bad port/d":        "xxxxx",
		"postgres://h/d?sslmode=verify-full": "postgres://h/d?sslmode=verify-full",
	} {
		if got := form.Mask(in); got != want {
			t.Errorf("Mask(%q) = %q, want %q", in, got, want)
		}
	}
}
