package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/config"
	"openmesh/node/keys"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	backupEnv = "OPENMESH_BACKUP_PASSPHRASE"
	maxBackup = 64 << 10 // bytes
)

func newKey(p *program) *cobra.Command {
	return p.noun("key", "The keys of this agent's identity",
		newKeyStatus(p), newKeyRotate(p), newKeyBackup(p), newKeyRestore(p))
}

func newKeyStatus(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the key certificate in the home", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			home, err := p.homeDir()
			if err != nil {
				return err
			}
			return p.showKeys(home)
		},
	}
}

// showKeys prints how the identity in a home stands.
func (p *program) showKeys(home string) error {
	now := time.Now()
	r, err := keys.Status(home, now)
	if err != nil {
		return err
	}
	status := &openmeshv1.KeyStatusResponse{
		Agent: string(r.Agent), Address: r.Address.String(), Peer: r.Peer.String(), KeyVersion: r.Version,
		NotBefore: r.NotBefore.UTC().Format(time.RFC3339), NotAfter: r.NotAfter.UTC().Format(time.RFC3339),
		ExpiresInS: r.NotAfter.Sub(now).Truncate(time.Second).Seconds(), State: r.State, Root: r.Root,
	}
	return p.show(status, func(g *page) {
		g.fields("agent", status.Agent, "address", status.Address, "peer", status.Peer,
			"key version", fmt.Sprint(status.KeyVersion), "state", status.State,
			"valid from", g.when(status.NotBefore, now), "expires", g.when(status.NotAfter, now), "root key", status.Root)
	})
}

// keySecrets are the flags by which passphrases are given.
type keySecrets struct{ root, backup string }

func (k *keySecrets) define(cmd *cobra.Command, withBackup bool) {
	cmd.Flags().StringVar(&k.root, "passphrase-file", "", "file with the passphrase of the root key (else $OPENMESH_PASSPHRASE)")
	if withBackup {
		cmd.Flags().StringVar(&k.backup, "backup-passphrase-file", "", "file with the passphrase of the backup (else $"+backupEnv+")")
	}
}

// rootPassphrase finds out the passphrase of the root key in a home.
func (p *program) rootPassphrase(home string, k keySecrets) ([]byte, error) {
	return p.passphrase(secret{
		what: "passphrase of the root key", file: k.root, flag: "--passphrase-file", env: "OPENMESH_PASSPHRASE", home: home,
	})
}

func (p *program) backupPassphrase(k keySecrets, chosenNow bool) ([]byte, error) {
	return p.passphrase(secret{
		what: "passphrase of the backup", file: k.backup, flag: "--backup-passphrase-file", env: backupEnv, new: chosenNow,
	})
}

func newKeyRotate(p *program) *cobra.Command {
	var given keySecrets
	var validity limit
	cmd := &cobra.Command{
		Use: "rotate", Short: "Certify a new host key", Args: cobra.NoArgs,
		Long: "Certify a new host key with the root key. Agent id and address stay; the old key version is\n" +
			"superseded. A daemon that runs takes the new key when it is started again.",
	}
	given.define(cmd, false)
	cmd.Flags().Var(&validity, "validity", "how long the new key is valid, such as 672h (default 28 days)")
	cmd.RunE = func(*cobra.Command, []string) error {
		home, err := p.homeDir()
		if err != nil {
			return err
		}
		if _, err := keys.Open(home); err != nil { // before anyone is asked for a passphrase
			return err
		}
		passphrase, err := p.rootPassphrase(home, given)
		if err != nil {
			return err
		}
		defer clear(passphrase)
		if _, err := keys.Rotate(home, passphrase, time.Duration(validity), time.Now()); err != nil {
			return err
		}
		if d, err := api.Dial(home); err == nil {
			d.Close()
			p.note("the daemon uses the old key until it is started again")
		}
		return p.showKeys(home)
	}
	return cmd
}

func newKeyBackup(p *program) *cobra.Command {
	var given keySecrets
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Write a sealed backup of the identity", Args: cobra.ExactArgs(1),
		Long: "Write a backup of the identity, sealed under a passphrase of its own. FILE must not be there yet;\n" +
			"- is standard output.",
		Example: "  openmesh key backup agent.backup",
	}
	given.define(cmd, true)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		home, err := p.homeDir()
		if err != nil {
			return err
		}
		if _, err := keys.Open(home); err != nil {
			return err
		}
		sealed, err := p.sealBackup(home, given)
		if err != nil {
			return err
		}
		return p.writeBackup(args[0], sealed)
	}
	return cmd
}

func (p *program) sealBackup(home string, given keySecrets) ([]byte, error) {
	passphrase, err := p.rootPassphrase(home, given)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	sealing, err := p.backupPassphrase(given, true)
	if err != nil {
		return nil, err
	}
	defer clear(sealing)
	var sealed bytes.Buffer
	err = keys.Backup(home, passphrase, sealing, &sealed)
	return sealed.Bytes(), err
}

// writeBackup writes a backup to a new file, or to standard output.
func (p *program) writeBackup(name string, sealed []byte) error {
	if name == "-" {
		_, err := p.out.Write(sealed)
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return wire.Errorf(wire.AlreadyExists, "%s is there already", name).WithHint("give a new name: a backup is never overwritten")
	}
	if err != nil {
		return wire.Errorf(wire.InvalidArgument, "write backup: %w", err)
	}
	_, err = f.Write(sealed)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	written := struct {
		File  string `json:"file"`
		Bytes int    `json:"bytes"`
	}{name, len(sealed)}
	return p.showValue(written, func(g *page) {
		g.text("backup written to %s; without its passphrase it is worth nothing", name)
	})
}

func newKeyRestore(p *program) *cobra.Command {
	var given keySecrets
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put an identity from a backup into the home", Args: cobra.ExactArgs(1),
		Long: "Put an identity from a backup into the home: the same agent id and address, new keys. FILE may be -\n" +
			"for standard input. A home that has an identity is left as it is.",
		Example: "  openmesh --home /srv/agent key restore agent.backup",
	}
	given.define(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		home, err := p.homeDir()
		if err != nil {
			return err
		}
		if _, err := keys.Open(home); wire.CodeOf(err) != wire.NotFound {
			return wire.Errorf(wire.AlreadyExists, "%s has an identity already", home).WithHint("restore into another home with --home")
		}
		sealed, err := p.readBackup(args[0])
		if err != nil {
			return wire.Errorf(wire.InvalidArgument, "read backup: %w", err)
		}
		k, err := p.restore(cmd.Context(), home, sealed, given)
		if err != nil {
			return err
		}
		if err := writeConfig(home, k.Address.Realm); err != nil {
			return err
		}
		return p.showKeys(home)
	}
	return cmd
}

func (p *program) readBackup(name string) ([]byte, error) {
	if name == "-" {
		return readAll(p.in, maxBackup)
	}
	return readFile(name, maxBackup)
}

func (p *program) restore(ctx context.Context, home string, sealed []byte, given keySecrets) (*keys.Keys, error) {
	opening, err := p.backupPassphrase(given, false)
	if err != nil {
		return nil, err
	}
	defer clear(opening)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	passphrase, err := p.newPassphrase(home, given.root)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	return keys.Restore(ctx, home, bytes.NewReader(sealed), opening, passphrase, time.Now())
}

// writeConfig writes a configuration for an agent of the realm, unless there is
// one.
func writeConfig(home string, realm identity.Realm) error {
	f, err := os.OpenFile(filepath.Join(home, config.FileName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = f.Write(config.Template(map[string]string{"node.realm": fmt.Sprint(uint16(realm))}))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}
