package keys

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const lab = identity.FirstPrivateRealm

var (
	now   = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	pass  = []byte("correct horse battery staple")
	other = []byte("Tr0ub4dor&3")
	cheap = cost{passes: 1, memory: 8, lanes: 1}
)

func cheapStore(t testing.TB) store {
	return store{home: filepath.Join(t.TempDir(), "home"), cost: cheap}
}

func options() InitOptions { return InitOptions{Realm: lab, Passphrase: pass, Now: now} }

// newIdentity makes an identity in a home of its own.
func newIdentity(t testing.TB) (store, *Keys) {
	t.Helper()
	s := cheapStore(t)
	k, err := s.create(t.Context(), options())
	check(t, err)
	return s, k
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, want wire.Code) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %s", err, want)
	}
}

func wantSame(t testing.TB, got, want *Keys) {
	t.Helper()
	gotBox, _ := got.Mailbox.Bytes()
	wantBox, _ := want.Mailbox.Bytes()
	if got.Agent != want.Agent || got.Address != want.Address || got.Peer != want.Peer || !got.Host.Equals(want.Host) ||
		!bytes.Equal(gotBox, wantBox) || !bytes.Equal(got.Certificate.Raw, want.Certificate.Raw) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The life of an identity through the exported functions, with the cost that
// people pay.
func TestLifeOfAnIdentity(t *testing.T) {
	t.Parallel()
	home, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "new")
	searches := 0
	first, err := Init(t.Context(), home, InitOptions{Realm: lab, Passphrase: pass, Now: now, Validity: time.Hour, Progress: func() { searches++ }})
	check(t, err)
	if searches != 1 {
		t.Errorf("Progress was called %d times", searches)
	}
	if c := first.Certificate; !c.NotBefore.Equal(now) || !c.NotAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("valid from %s to %s", c.NotBefore, c.NotAfter)
	}
	k, err := Open(home)
	check(t, err)
	wantSame(t, k, first)

	var backup bytes.Buffer
	check(t, Backup(home, pass, other, &backup))
	if backup.Len() != sealedSize || bytes.Contains(backup.Bytes(), first.Certificate.Raw[:16]) {
		t.Errorf("a backup of %d bytes", backup.Len())
	}
	if c, err := parseHeader(backup.Bytes()); err != nil || c != standard {
		t.Errorf("backup is sealed with %+v, %v", c, err)
	}
	rotated, err := Rotate(home, pass, 0, now.Add(time.Minute))
	check(t, err)

	restored, err := Restore(t.Context(), elsewhere, &backup, other, []byte("a third one"), now.Add(2*time.Minute))
	check(t, err)
	if restored.Agent != first.Agent || restored.Address != first.Address || restored.Certificate.Version <= rotated.Certificate.Version {
		t.Errorf("restored %+v after %+v", restored, rotated)
	}
	v := identity.NewVerifier(lab, func() time.Time { return now.Add(2 * time.Minute) })
	for _, c := range []*identity.Certificate{first.Certificate, rotated.Certificate, restored.Certificate} {
		if _, err := v.Verify(c.Raw); err != nil {
			t.Errorf("version %d: %v", c.Version, err)
		}
	}
}

func TestRotateKeepsWhatIsStillNeeded(t *testing.T) {
	t.Parallel()
	s, first := newIdentity(t)
	day := 24 * time.Hour
	second, err := s.rotate(pass, 0, now.Add(14*day))
	check(t, err)
	if second.Agent != first.Agent || second.Address != first.Address || second.Peer == first.Peer || second.Certificate.Version <= first.Certificate.Version {
		t.Fatalf("rotated from %+v to %+v", first, second)
	}
	k, err := s.open()
	check(t, err)
	wantSame(t, k, second)
	boxes, err := s.mailboxes()
	check(t, err)
	if b := boxes[first.Certificate.Version]; len(boxes) != 2 || b == nil || !bytes.Equal(b.PublicKey().Bytes(), first.Certificate.MailboxKey) {
		t.Errorf("mailbox keys %v, want both", boxes)
	}
	if _, err := os.Stat(s.path(versionName(first.Certificate.Version), hostFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("superseded host key: %v, want it gone", err)
	}
	// The first mailbox key goes a week after its certificate has ended.
	third, err := s.rotate(pass, 0, first.Certificate.NotAfter.Add(mailboxGrace+time.Second))
	check(t, err)
	boxes, err = s.mailboxes()
	check(t, err)
	if boxes[first.Certificate.Version] != nil || boxes[second.Certificate.Version] == nil || boxes[third.Certificate.Version] == nil {
		t.Errorf("mailbox keys %v, want the last two", boxes)
	}
}

// Versions grow even if the clock does not.
func TestVersionsOnlyGrow(t *testing.T) {
	t.Parallel()
	s, k := newIdentity(t)
	last := k.Certificate.Version
	for _, at := range []time.Time{now, now, now.AddDate(-3, 0, 0), now.AddDate(-20, 0, 0), now.Add(time.Hour)} {
		k, err := s.rotate(pass, 0, at)
		check(t, err)
		if k.Certificate.Version <= last {
			t.Errorf("at %s version %d follows %d", at, k.Certificate.Version, last)
		}
		last = k.Certificate.Version
	}
	if _, err := nextVersion(1<<32-1, now); err == nil {
		t.Error("a version after the last one")
	}
}

// Every refusal, and that it changes nothing.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s, k := newIdentity(t)
	empty := cheapStore(t)
	var file bytes.Buffer
	check(t, s.backup(pass, other, &file))
	read := func() *bytes.Reader { return bytes.NewReader(file.Bytes()) }
	ctx := t.Context()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	initWith := func(s store, change func(*InitOptions)) error {
		o := options()
		change(&o)
		_, err := s.create(ctx, o)
		return err
	}
	second := func(_ *Keys, err error) error { return err }
	for _, tc := range []struct {
		name string
		err  error
		want wire.Code
	}{
		{"init over an identity", initWith(s, func(*InitOptions) {}), wire.AlreadyExists},
		{"init with no passphrase", initWith(empty, func(o *InitOptions) { o.Passphrase = nil }), wire.InvalidArgument},
		{"init valid too long", initWith(empty, func(o *InitOptions) { o.Validity = identity.MaxValidity + 1 }), wire.InvalidArgument},
		{"init in no realm", initWith(empty, func(o *InitOptions) { o.Realm = identity.MaxRealm + 1 }), wire.InvalidArgument},
		{"open nothing", second(empty.open()), wire.NotFound},
		{"rotate nothing", second(empty.rotate(pass, 0, now)), wire.NotFound},
		{"rotate with a wrong passphrase", second(s.rotate(other, 0, now)), wire.Denied},
		{"rotate for a negative time", second(s.rotate(pass, -time.Hour, now)), wire.InvalidArgument},
		{"back up with a wrong passphrase", s.backup(other, other, new(bytes.Buffer)), wire.Denied},
		{"back up under no passphrase", s.backup(pass, nil, new(bytes.Buffer)), wire.InvalidArgument},
		{"back up nothing", empty.backup(pass, other, new(bytes.Buffer)), wire.NotFound},
		{"restore over an identity", second(s.restore(ctx, read(), other, pass, now)), wire.AlreadyExists},
		{"restore with a wrong passphrase", second(empty.restore(ctx, read(), pass, pass, now)), wire.Denied},
		{"restore under no passphrase", second(empty.restore(ctx, read(), other, nil, now)), wire.InvalidArgument},
		{"restore what is no backup", second(empty.restore(ctx, strings.NewReader("x"), other, pass, now)), wire.Malformed},
		{"restore a long file", second(empty.restore(ctx, strings.NewReader(file.String()+"x"), other, pass, now)), wire.Malformed},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v, want %s", tc.name, tc.err, tc.want)
		}
	}
	if _, err := empty.restore(cancelled, read(), other, pass, now); !errors.Is(err, context.Canceled) {
		t.Errorf("restore after cancel: %v", err)
	}
	if _, err := empty.create(cancelled, options()); !errors.Is(err, context.Canceled) {
		t.Errorf("init after cancel: %v", err)
	}
	again, err := s.open()
	check(t, err)
	wantSame(t, again, k)
	_, err = empty.create(ctx, options())
	check(t, err)
}

var errCrash = errors.New("crash")

// crashAt lets n changes of the disk happen and none after, as if the machine
// had stopped. It reports whether it came to that.
func crashAt(s store, n int) (store, *bool) {
	crashed := new(bool)
	s.step = func(string) error {
		if n--; n < 0 {
			*crashed = true
			return errCrash
		}
		return nil
	}
	return s, crashed
}

func TestCrashInInitLeavesNothingOrAll(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		s := cheapStore(t)
		broken, crashed := crashAt(s, n)
		k, err := broken.create(t.Context(), options())
		if !*crashed && err != nil {
			t.Fatal(err)
		}
		if found, openErr := s.open(); openErr != nil {
			wantCode(t, openErr, wire.NotFound)
			_, err := s.create(t.Context(), options())
			check(t, err)
		} else if err == nil {
			wantSame(t, found, k)
		}
		_, err = s.rotate(pass, 0, now)
		check(t, err)
		wantTidy(t, s)
		if !*crashed {
			if n < 10 {
				t.Errorf("only %d steps", n)
			}
			return
		}
	}
}

func TestCrashInRotateLeavesOldOrNew(t *testing.T) {
	t.Parallel()
	sawOld, sawNew := false, false
	for n := 0; ; n++ {
		s, first := newIdentity(t)
		broken, crashed := crashAt(s, n)
		k, err := broken.rotate(pass, 0, now)
		if !*crashed && err != nil {
			t.Fatal(err)
		}
		found, openErr := s.open()
		if openErr != nil {
			t.Fatalf("after %d steps: %v", n, openErr)
		}
		sawOld = sawOld || found.Peer == first.Peer
		sawNew = sawNew || err != nil && found.Peer != first.Peer
		if err == nil {
			wantSame(t, found, k)
		}
		next, err := s.rotate(pass, 0, now)
		check(t, err)
		if next.Certificate.Version <= found.Certificate.Version || next.Agent != first.Agent {
			t.Errorf("after %d steps: version %d follows %d", n, next.Certificate.Version, found.Certificate.Version)
		}
		wantTidy(t, s)
		if !*crashed {
			break
		}
	}
	if !sawOld || !sawNew {
		t.Errorf("crashes before the change %v, after it %v; want both", sawOld, sawNew)
	}
}

// wantTidy checks that nothing unfinished is left and nothing is open to others.
func wantTidy(t *testing.T, s store) {
	t.Helper()
	check(t, filepath.WalkDir(s.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 || strings.Contains(d.Name(), staging) {
			t.Errorf("%s is left with mode %s", path, info.Mode())
		}
		return err
	}))
}

func TestConcurrentInitMakesOneIdentity(t *testing.T) {
	t.Parallel()
	s := cheapStore(t)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		made []*Keys
	)
	for range 8 {
		wg.Go(func() {
			k, err := s.create(t.Context(), options())
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made = append(made, k)
			} else {
				wantCode(t, err, wire.AlreadyExists)
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("%d identities were made", len(made))
	}
	k, err := s.open()
	check(t, err)
	wantSame(t, k, made[0])
}

// Whoever opens while others rotate gets keys that belong together.
func TestOpenDuringRotate(t *testing.T) {
	t.Parallel()
	s, first := newIdentity(t)
	var rotations, readers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		rotations.Go(func() {
			for range 10 {
				if _, err := s.rotate(pass, 0, now); err != nil {
					t.Error(err)
				}
			}
		})
	}
	readers.Go(func() {
		for {
			if k, err := s.open(); err != nil || k.Agent != first.Agent {
				t.Errorf("open: %+v, %v", k, err)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	rotations.Wait()
	close(done)
	readers.Wait()
	k, err := s.open()
	check(t, err)
	if got, min := k.Certificate.Version, first.Certificate.Version+20; got < min {
		t.Errorf("version %d after 20 rotations, want %d", got, min)
	}
}

func TestPermissions(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no such modes on Windows")
	}
	s, k := newIdentity(t)
	dir := versionName(k.Certificate.Version)
	for _, name := range []string{currentFile, filepath.Join(dir, hostFile), filepath.Join(dir, mailboxFile), filepath.Join(dir, certFile)} {
		check(t, os.Chmod(s.path(name), 0o644))
		_, err := s.open()
		var refused *wire.Error
		if !errors.As(err, &refused) || refused.Code != wire.Denied || !strings.Contains(refused.Hint, "chmod 600 '"+s.path(name)) {
			t.Errorf("%s of mode 0644: %v", name, err)
		}
		check(t, os.Chmod(s.path(name), 0o600))
	}
	check(t, os.Chmod(s.path(), 0o755))
	_, err := s.open()
	wantCode(t, err, wire.Denied)
	check(t, os.Chmod(s.path(), 0o700))
	check(t, os.Chmod(s.path(rootFile), 0o640))
	_, err = s.rotate(pass, 0, now)
	wantCode(t, err, wire.Denied)
}

// Files of two identities, or of two versions, are not taken for one.
func TestPartsMustBelongTogether(t *testing.T) {
	t.Parallel()
	a, ka := newIdentity(t)
	b, kb := newIdentity(t)
	av, bv := versionName(ka.Certificate.Version), versionName(kb.Certificate.Version)
	for _, tc := range []struct {
		file string
		from []byte
		want wire.Code
	}{
		{filepath.Join(av, hostFile), contents(t, b, bv, hostFile), wire.Malformed},
		{filepath.Join(av, hostFile), nil, wire.Malformed},
		{filepath.Join(av, mailboxFile), contents(t, b, bv, mailboxFile), wire.Malformed},
		{filepath.Join(av, mailboxFile), []byte("short"), wire.Malformed},
		{filepath.Join(av, certFile), contents(t, b, bv, certFile), wire.Malformed},
		{filepath.Join(av, certFile), []byte("{}"), wire.Unauthenticated},
		{filepath.Join(av, certFile), make([]byte, identity.MaxCertificate+1), wire.TooLarge},
		{filepath.Join(av, hostFile), make([]byte, maxKeyFile+1), wire.TooLarge},
		{currentFile, []byte("../../etc\n"), wire.Malformed},
		{currentFile, []byte("+" + av), wire.Malformed},
		{rootFile, contents(t, b, rootFile), wire.Malformed},
	} {
		good := contents(t, a, tc.file)
		check(t, os.WriteFile(a.path(tc.file), tc.from, 0o600))
		_, err := a.rotate(pass, 0, now)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s replaced by %d other bytes: %v, want %s", tc.file, len(tc.from), err, tc.want)
		}
		check(t, os.WriteFile(a.path(tc.file), good, 0o600))
	}
	check(t, os.Remove(a.path(rootFile)))
	if _, err := a.open(); err != nil {
		t.Errorf("open without the root key: %v", err)
	}
	_, err := a.rotate(pass, 0, now)
	wantCode(t, err, wire.NotFound)
	check(t, os.Remove(a.path(currentFile)))
	_, err = a.open()
	wantCode(t, err, wire.NotFound)
	_, err = a.create(t.Context(), options())
	wantCode(t, err, wire.AlreadyExists) // what is left may be dear to someone
}

func contents(t testing.TB, s store, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(s.path(elem...))
	check(t, err)
	return b
}

func TestStatus(t *testing.T) {
	t.Parallel()
	s, k := newIdentity(t)
	c := k.Certificate
	for _, tc := range []struct {
		at   time.Time
		want string
	}{
		{c.NotBefore.Add(-time.Hour), "not_yet_valid"},
		{c.NotBefore, "valid"},
		{c.NotAfter.Add(-expiring), "valid"},
		{c.NotAfter.Add(-expiring + time.Second), "expiring"},
		{c.NotAfter, "expired"},
	} {
		r, err := Status(s.home, tc.at)
		check(t, err)
		if r.State != tc.want || r.Version != c.Version || r.Agent != k.Agent || r.Root != "sealed" {
			t.Errorf("at %s: %+v, want %s", tc.at, r, tc.want)
		}
	}
	check(t, os.Remove(s.path(rootFile)))
	if r, err := Status(s.home, now); err != nil || r.Root != "absent" {
		t.Errorf("without the root key: %+v, %v", r, err)
	}
}

func TestFailedBackupIsAnError(t *testing.T) {
	t.Parallel()
	s, _ := newIdentity(t)
	if err := s.backup(pass, other, failingWriter{}); !errors.Is(err, errCrash) {
		t.Errorf("backup to a full disk: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errCrash }

func TestVersionsAreNotNumbersOfOtherThings(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{"1": true, "4294967295": true, "0": false, "01": false, "4294967296": false, "-1": false, "": false, "new-1": false} {
		if _, ok := parseVersion(s); ok != want {
			t.Errorf("parseVersion(%q) = %v", s, ok)
		}
	}
	if !slices.Equal(currentText(7), []byte("7\n")) {
		t.Error("current is not a line")
	}
}
