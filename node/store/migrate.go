package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/pressly/goose/v3"

	"openmesh/protocols/wire"
)

// migrate brings the tables to the version of this program.
func migrate(ctx context.Context, db *sql.DB, d dialect) error {
	name, folder, options, err := d.migrations()
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(name, db, folder, append(options, goose.WithDisableGlobalRegistry(true))...)
	if err != nil {
		return err
	}
	current, target, err := p.GetVersions(ctx)
	switch {
	case err != nil:
		return err
	case current > target:
		return wire.Errorf(wire.Unsupported, "its tables are of version %d, this program knows them up to %d", current, target).
			WithHint("A newer openmesh has used the database: run that one, or a newer one.")
	case current == target:
		return nil
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring its tables to version %d: %w", target, err)
	}
	return nil
}
