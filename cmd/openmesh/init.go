package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/config"
	"openmesh/node/keys"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

var roles = strings.Fields("agent relay backbone")

func newInit(p *program) *cobra.Command {
	var set settings
	var passphraseFile string
	cmd := &cobra.Command{
		Use: "init", Short: "Make an identity and its home", Args: cobra.NoArgs,
		Long: "Make an identity and its home: keys, and a config.yaml in which the other flags are set. What is\n" +
			"there is never overwritten. The root key is sealed under a passphrase: from --passphrase-file, from\n" +
			"OPENMESH_PASSPHRASE, or asked for on a terminal; else a random one is left in the home.",
		Example: "  openmesh init\n" +
			"  openmesh init --realm 64512 --bootstrap /dns4/backbone.example/tcp/4747/p2p/12D3KooW…",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.makeHome(cmd.Context(), set.overrides(), passphraseFile)
		},
	}
	set.define(cmd, "realm", "role", "bootstrap", "relay", "listen", "api-listen", "name", "region", "domain")
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase that seals the root key")
	return cmd
}

// makeHome makes the home: first the keys, which are there whole or not at all,
// then the configuration.
func (p *program) makeHome(ctx context.Context, overrides map[string]string, passphraseFile string) error {
	home, err := p.homeDir()
	if err != nil {
		return err
	}
	file := filepath.Join(home, config.FileName)
	_, err = os.Lstat(file)
	keep := !errors.Is(err, fs.ErrNotExist) // a configuration that was put there beforehand
	if keep && len(overrides) > 0 {
		return wire.Errorf(wire.AlreadyExists, "%s is there already", file).
			WithHint("edit it, or move it away; without flags init leaves it as it is")
	}
	if _, err := keys.Open(home); wire.CodeOf(err) != wire.NotFound {
		return wire.Errorf(wire.AlreadyExists, "%s has an identity already", home).
			WithHint("use another home with --home; `openmesh key status` tells about the one that is there")
	}
	cfg, err := config.Load(home, p.environ, overrides)
	if err != nil {
		return err
	}
	made, err := p.makeKeys(ctx, home, identity.Realm(cfg.Node.Realm), passphraseFile)
	if err != nil {
		return fmt.Errorf("make an identity in %s: %w", home, err)
	}
	if !keep {
		if err := os.WriteFile(file, config.Template(overrides), 0o600); err != nil {
			return fmt.Errorf("write configuration: %w", err)
		}
	}
	id := identityOf(made, cfg)
	return p.show(id, func(g *page) { identityFields(g, id) })
}

func (p *program) makeKeys(ctx context.Context, home string, realm identity.Realm, passphraseFile string) (*keys.Keys, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	passphrase, err := p.newPassphrase(home, passphraseFile)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	return keys.Init(ctx, home, keys.InitOptions{
		Realm: realm, Passphrase: passphrase, Now: time.Now(),
		Progress: func() {
			if isTerminal(p.err) {
				p.note("finding an address: this takes a few seconds")
			}
		},
	})
}

// newPassphrase finds out, or makes, the passphrase of a new root key.
func (p *program) newPassphrase(home, file string) ([]byte, error) {
	s := secret{
		what: "passphrase for the root key", file: file, flag: "--passphrase-file", env: "OPENMESH_PASSPHRASE",
		home: home, new: true,
	}
	passphrase, err := p.passphrase(s)
	if err == nil || p.interactive() || s.file != "" || !errors.Is(err, errNoPassphrase) {
		return passphrase, err
	}
	left := filepath.Join(home, passphraseFileName)
	passphrase = randomPassphrase()
	if err := os.WriteFile(left, append(passphrase, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("write passphrase: %w", err)
	}
	fmt.Fprintf(p.err, "hint: a random passphrase is in %s: move it off this machine, it is needed for rotation and backup\n", left)
	return passphrase, nil
}

// identityOf is the document that init prints.
func identityOf(k *keys.Keys, cfg *config.Config) *openmeshv1.IdResponse {
	return &openmeshv1.IdResponse{
		Agent: string(k.Agent), Address: k.Address.String(), Realm: uint32(k.Address.Realm), Peer: k.Peer.String(),
		KeyVersion: k.Certificate.Version, NotAfter: k.Certificate.NotAfter.UTC().Format(time.RFC3339),
		Roles: cfg.Node.Roles,
	}
}
