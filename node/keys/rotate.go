package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"openmesh/protocols/wire"
)

func (s store) rotate(passphrase []byte, validity time.Duration, now time.Time) (k *Keys, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("rotate keys: %w", err)
		}
	}()
	unlock, err := s.lockPresent()
	if err != nil {
		return nil, err
	}
	defer unlock()
	sec, err := s.openRoot(passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(sec.root)
	versions, err := s.versions()
	if err != nil {
		return nil, err
	}
	// A rotation that was cut short may have left a version above the current one.
	if k, err = certify(&sec, max(sec.version, slices.Max(versions)), validity, now); err != nil {
		return nil, err
	}
	if err := s.replace(k); err != nil {
		return nil, err
	}
	s.prune(versions, now)
	return k, nil
}

// lockPresent locks the home of an identity that opens.
func (s store) lockPresent() (unlock func(), err error) {
	if _, err := s.open(); err != nil { // before a lock file is made in a home that is none
		return nil, err
	}
	return s.lock()
}

// replace makes k current: its directory first, then the pointer to it.
func (s store) replace(k *Keys) error {
	stage, err := s.stage(s.path(), staging)
	if err != nil {
		return err
	}
	defer s.remove(stage) // gone by then if all went well
	version := k.Certificate.Version
	pointer := s.path(staging + currentFile)
	return firstError(
		func() error { return s.writeKeys(stage, k) },
		func() error { return s.rename(stage, s.path(versionName(version))) },
		func() error { return s.write(pointer, currentText(version)) },
		func() error { return s.rename(pointer, s.path(currentFile)) },
	)
}

// prune erases the host keys of superseded versions, and the whole of those
// to whose mailbox nothing can be under way any more. What cannot be erased now
// is tried again at the next rotation: the new key is good all the same.
func (s store) prune(superseded []uint32, now time.Time) {
	for _, v := range superseded {
		cert, err := s.certificate(v)
		if err == nil && now.After(cert.NotAfter.Add(mailboxGrace)) {
			s.remove(s.path(versionName(v)))
		} else {
			s.remove(s.path(versionName(v), hostFile))
		}
	}
}

// openRoot unseals the root key and checks that it is the one that certified
// the current keys. The version in the result is the current one.
func (s store) openRoot(passphrase []byte) (secret, error) {
	cur, err := s.open()
	if err != nil {
		return secret{}, err
	}
	file, err := readPrivate(s.path(rootFile), sealedSize)
	if errors.Is(err, fs.ErrNotExist) {
		return secret{}, wire.Errorf(wire.NotFound, "the root key is not in this home: %w", err).
			WithHint("rotate where the root key is, or restore a backup with: openmesh key restore")
	}
	if err != nil {
		return secret{}, err
	}
	sec, err := unseal(passphrase, file)
	if err != nil {
		return secret{}, fmt.Errorf("open root key: %w", err)
	}
	agent, _ := sec.agent()
	if agent != cur.Agent || sec.realm != cur.Address.Realm || sec.nonce != cur.Certificate.Nonce {
		clear(sec.root)
		return secret{}, wire.Errorf(wire.Malformed, "the root key is that of %s, the certificate that of %s", agent, cur.Agent)
	}
	sec.version = cur.Certificate.Version
	return sec, nil
}

func (s store) backup(passphrase, backupPassphrase []byte, w io.Writer) error {
	if err := checkPassphrase("backup passphrase", backupPassphrase); err != nil {
		return err
	}
	sec, err := s.openRoot(passphrase)
	if err != nil {
		return fmt.Errorf("back up identity: %w", err)
	}
	defer clear(sec.root)
	b, err := seal(s.cost, backupPassphrase, sec)
	if err != nil {
		return fmt.Errorf("seal backup: %w", err)
	}
	again, err := unseal(backupPassphrase, b)
	if err != nil {
		return fmt.Errorf("verify backup: %w", err)
	}
	defer clear(again.root)
	if !again.root.Equal(sec.root) || again.realm != sec.realm || again.nonce != sec.nonce || again.version != sec.version {
		return wire.Errorf(wire.Internal, "verify backup: it opens to another identity")
	}
	if n, err := w.Write(b); err != nil || n != len(b) {
		return fmt.Errorf("write backup: %w", errors.Join(err, shortWrite(n, len(b))))
	}
	return nil
}

func shortWrite(n, want int) error {
	if n == want {
		return nil
	}
	return io.ErrShortWrite
}

func (s store) restore(ctx context.Context, r io.Reader, backupPassphrase, passphrase []byte, now time.Time) (*Keys, error) {
	if err := checkPassphrase("passphrase", passphrase); err != nil {
		return nil, err
	}
	var file bytes.Buffer
	if _, err := io.Copy(&file, io.LimitReader(r, int64(sealedSize)+1)); err != nil {
		return nil, fmt.Errorf("read backup: %w", err)
	}
	sec, err := unseal(backupPassphrase, file.Bytes())
	if err != nil {
		return nil, fmt.Errorf("open backup: %w", err)
	}
	defer clear(sec.root)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("restore identity: %w", err)
	}
	unlock, err := s.lockVacant()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.build(sec, passphrase, 0, now)
}
