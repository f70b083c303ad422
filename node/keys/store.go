package keys

import (
	"bytes"
	"context"
	"crypto/hpke"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// store is the keys directory of one home.
type store struct {
	home string
	cost cost
	step func(what string) error // before every change of the disk; tests crash here
}

const (
	keysDir     = "keys"
	rootFile    = "root.key"
	currentFile = "current"
	hostFile    = "host.key"
	mailboxFile = "mailbox.key"
	certFile    = "certificate"
	staging     = "new-" // starts the name of a directory that does not count yet

	maxKeyFile = 256 // bytes; a marshalled host key has 68, a mailbox key 32
)

func (s store) path(elem ...string) string {
	return filepath.Join(append([]string{s.home, keysDir}, elem...)...)
}

func (s store) create(ctx context.Context, o InitOptions) (*Keys, error) {
	if err := checkPassphrase("passphrase", o.Passphrase); err != nil {
		return nil, err
	}
	unlock, err := s.lockVacant()
	if err != nil {
		return nil, err
	}
	defer unlock()
	sec, err := generateRoot(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	defer clear(sec.root)
	return s.build(sec, o.Passphrase, o.Validity, o.Now)
}

// lockVacant locks a home, which it makes if need be, and checks that there is
// no identity in it.
func (s store) lockVacant() (unlock func(), err error) {
	if err := os.MkdirAll(s.home, 0o700); err != nil {
		return nil, fmt.Errorf("make home: %w", err)
	}
	if unlock, err = s.lock(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(s.path()); !errors.Is(err, fs.ErrNotExist) {
		unlock()
		if err != nil {
			return nil, fmt.Errorf("look for an identity: %w", err)
		}
		return nil, wire.Errorf(wire.AlreadyExists, "%s has an identity", s.home).
			WithHint("use another --home, or move %s away if you are sure", s.path())
	}
	return unlock, nil
}

// build writes a whole keys directory under a temporary name and renames it.
func (s store) build(sec secret, passphrase []byte, validity time.Duration, now time.Time) (k *Keys, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write identity in %s: %w", s.home, err)
		}
	}()
	if k, err = certify(&sec, sec.version, validity, now); err != nil {
		return nil, err
	}
	sealed, err := seal(s.cost, passphrase, sec)
	if err != nil {
		return nil, err
	}
	stage, err := s.stage(s.home, keysDir+"."+staging)
	if err != nil {
		return nil, err
	}
	defer s.remove(stage) // gone by then if all went well
	version := filepath.Join(stage, versionName(sec.version))
	if err := firstError(
		func() error { return s.write(filepath.Join(stage, rootFile), sealed) },
		func() error { return s.mkdir(version) },
		func() error { return s.writeKeys(version, k) },
		func() error { return s.write(filepath.Join(stage, currentFile), currentText(sec.version)) },
		func() error { return s.sync(stage) },
		func() error { return s.rename(stage, s.path()) },
	); err != nil {
		return nil, err
	}
	return k, nil
}

// certify issues the next certificate after version last, and notes its version
// in sec.
func certify(sec *secret, last uint32, validity time.Duration, now time.Time) (*Keys, error) {
	validity, err := checkValidity(validity)
	if err != nil {
		return nil, err
	}
	if sec.version, err = nextVersion(last, now); err != nil {
		return nil, err
	}
	return issue(*sec, validity, now)
}

// writeKeys fills the directory of one version.
func (s store) writeKeys(dir string, k *Keys) error {
	host, err := crypto.MarshalPrivateKey(k.Host)
	if err != nil {
		return err
	}
	defer clear(host)
	mailbox, err := k.Mailbox.Bytes() // the live key's own: not to be cleared
	if err != nil {
		return err
	}
	return firstError(
		func() error { return s.write(filepath.Join(dir, hostFile), host) },
		func() error { return s.write(filepath.Join(dir, mailboxFile), mailbox) },
		func() error { return s.write(filepath.Join(dir, certFile), k.Certificate.Raw) },
		func() error { return s.sync(dir) },
	)
}

func (s store) open() (*Keys, error) {
	version, err := s.current()
	for err == nil {
		var k *Keys
		if k, err = s.load(version); err == nil {
			return k, nil
		}
		// A rotation since may have taken this version away.
		again, changed := s.current()
		if changed != nil || again == version {
			break
		}
		version, err = again, nil
	}
	return nil, fmt.Errorf("open identity in %s: %w", s.home, err)
}

// current returns the version in use.
func (s store) current() (uint32, error) {
	if _, err := os.Lstat(s.path()); errors.Is(err, fs.ErrNotExist) {
		return 0, wire.Errorf(wire.NotFound, "there is no identity").WithHint("make one with: openmesh init")
	}
	b, err := readPrivate(s.path(currentFile), len("4294967295\n"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, wire.Errorf(wire.NotFound, "identity is incomplete: %w", err).
			WithHint("move %s away and restore a backup with: openmesh key restore", s.path())
	}
	if err != nil {
		return 0, err
	}
	v, ok := parseVersion(strings.TrimSuffix(string(b), "\n"))
	if !ok {
		return 0, wire.Errorf(wire.Malformed, "%s does not name a key version", s.path(currentFile))
	}
	return v, nil
}

// load reads one version and checks that its parts belong together.
func (s store) load(version uint32) (*Keys, error) {
	cert, err := s.certificate(version)
	if err != nil {
		return nil, err
	}
	b, err := readPrivate(s.path(versionName(version), hostFile), maxKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	host, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "host key: %w", err)
	}
	if !cert.Peer.MatchesPrivateKey(host) {
		return nil, wire.Errorf(wire.Malformed, "host key of version %d is not the one that its certificate names", version)
	}
	mailbox, err := s.mailbox(cert)
	if err != nil {
		return nil, err
	}
	return newKeys(cert, host, mailbox), nil
}

func (s store) certificate(version uint32) (*identity.Certificate, error) {
	raw, err := readPrivate(s.path(versionName(version), certFile), identity.MaxCertificate)
	if err != nil {
		return nil, err
	}
	cert, err := identity.ParseCertificate(raw)
	if err != nil {
		return nil, err
	}
	if cert.Version != version {
		return nil, wire.Errorf(wire.Malformed, "certificate in %s is of version %d", s.path(versionName(version)), cert.Version)
	}
	return cert, nil
}

// mailbox reads the mailbox key that cert names.
func (s store) mailbox(cert *identity.Certificate) (hpke.PrivateKey, error) {
	b, err := readPrivate(s.path(versionName(cert.Version), mailboxFile), maxKeyFile)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	key, err := identity.MailboxKEM.NewPrivateKey(b)
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "mailbox key: %w", err)
	}
	if cert.MailboxKEM != identity.MailboxKEM.ID() || !bytes.Equal(cert.MailboxKey, key.PublicKey().Bytes()) {
		return nil, wire.Errorf(wire.Malformed, "mailbox key of version %d is not the one that its certificate names", cert.Version)
	}
	return key, nil
}

func (s store) mailboxes() (map[uint32]hpke.PrivateKey, error) {
	versions, err := s.versions()
	if err != nil {
		return nil, fmt.Errorf("open mailbox keys in %s: %w", s.home, err)
	}
	keys := make(map[uint32]hpke.PrivateKey, len(versions))
	for _, v := range versions {
		cert, err := s.certificate(v)
		if err == nil {
			keys[v], err = s.mailbox(cert)
		}
		if errors.Is(err, fs.ErrNotExist) { // taken away by a rotation just now
			delete(keys, v)
		} else if err != nil {
			return nil, fmt.Errorf("open mailbox key %d in %s: %w", v, s.home, err)
		}
	}
	return keys, nil
}

// versions lists the version directories in ascending order of name.
func (s store) versions() ([]uint32, error) {
	if _, err := s.current(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.path())
	if err != nil {
		return nil, err
	}
	var vs []uint32
	for _, e := range entries {
		if v, ok := parseVersion(e.Name()); ok && e.IsDir() {
			vs = append(vs, v)
		}
	}
	return vs, nil
}

// root says where the root key is.
func (s store) root() string {
	if _, err := os.Lstat(s.path(rootFile)); err != nil {
		return "absent"
	}
	return "sealed"
}

func versionName(v uint32) string { return strconv.FormatUint(uint64(v), 10) }

func currentText(v uint32) []byte { return []byte(versionName(v) + "\n") }

// parseVersion takes only what versionName gives.
func parseVersion(s string) (uint32, bool) {
	v, err := strconv.ParseUint(s, 10, 32)
	return uint32(v), err == nil && v > 0 && versionName(uint32(v)) == s
}
