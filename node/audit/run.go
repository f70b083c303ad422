package audit

import (
	"context"
	"database/sql"
	"time"

	"go.uber.org/zap"

	"openmesh/node/store"
)

const (
	// retryEvery is how often a log that could not be written is tried again.
	retryEvery = time.Second
	// careEvery is how often payloads are pruned, and what has been added since the
	// last checkpoint is signed.
	careEvery = time.Hour
	// atOnce bounds the payloads that one transaction prunes.
	atOnce = 512

	selectDue = `SELECT idx FROM audit_entries WHERE owner = $1 AND payload IS NOT NULL AND at < $2 ORDER BY at LIMIT $3`
	prune     = `UPDATE audit_entries SET payload = NULL WHERE owner = $1 AND idx = $2`
)

// Run takes care of the log until ctx ends: it signs a checkpoint every hour in
// which something was added, removes payloads that are older than the retention,
// and goes on after failures of the database. The log can be used before and after.
func (l *Log) Run(ctx context.Context) error {
	defer l.end(ctx)
	retry, care := time.NewTicker(retryEvery), time.NewTicker(careEvery)
	defer retry.Stop()
	defer care.Stop()
	l.care(ctx)
	for {
		select {
		case <-retry.C:
			l.goOn(ctx)
		case <-care.C:
			l.care(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// end tries once more to write what waits, and has nobody wait from then on.
func (l *Log) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), retryEvery)
	defer cancel()
	l.goOn(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.landed.Broadcast()
}

// goOn writes what waits for the database, if it can be written again.
func (l *Log) goOn(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.mend(ctx); err != nil && ctx.Err() == nil {
		l.cfg.Log.Error("the audit log cannot be written", zap.Error(err))
	}
}

func (l *Log) care(ctx context.Context) {
	if _, err := l.Checkpoint(ctx); err != nil && ctx.Err() == nil {
		l.cfg.Log.Error("no checkpoint of the audit log", zap.Error(err))
	}
	if n, err := l.Prune(ctx, time.Now().Add(-l.cfg.Retention)); err != nil && ctx.Err() == nil {
		l.cfg.Log.Error("old payloads of the audit log not removed", zap.Error(err))
	} else if n > 0 {
		l.cfg.Log.Info("old payloads of the audit log removed", zap.Int("entries", n))
	}
}

// Prune removes the payloads of entries from before a time, and returns how many.
// Their hashes stay: proofs and checkpoints hold as before.
func (l *Log) Prune(ctx context.Context, before time.Time) (n int, err error) {
	for {
		var due store.Batch
		err := l.db.Query(ctx, "read old entries of the audit log", func(rows *sql.Rows) error {
			var idx int64
			err := rows.Scan(&idx)
			due.Add(prune, l.db.Owner(), idx)
			return err
		}, selectDue, l.db.Owner(), before.UnixNano(), atOnce)
		if err != nil || due.Len() == 0 {
			return n, err
		}
		if _, err := l.db.Exec(ctx, "prune the audit log", &due); err != nil {
			return n, err
		}
		n += due.Len()
	}
}
