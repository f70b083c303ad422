package experience

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/identity"
)

const (
	saveEvery = 5 * time.Minute
	maxFile   = 16 << 20 // bytes
)

// Load reads the book in file path. There being none is an empty book. One that
// cannot be read as a book is renamed to path.corrupt and reported, with an empty
// book in its place: experience can be gained again.
func Load(path string) (*Book, error) {
	b := New()
	if path == "" {
		return b, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, fmt.Errorf("read experience: %w", err)
	}
	if err := b.parse(raw); err != nil {
		b = New()
		return b, errors.Join(fmt.Errorf("read experience %s: %w", path, err), os.Rename(path, path+".corrupt"))
	}
	return b, nil
}

func (b *Book) parse(raw []byte) error {
	if len(raw) > maxFile {
		return fmt.Errorf("%d bytes, the limit is %d", len(raw), maxFile)
	}
	if err := json.Unmarshal(raw, &b.agents); err != nil {
		return err
	}
	if b.agents == nil || len(b.agents) > MaxAgents {
		return fmt.Errorf("%d agents, the limit is %d", len(b.agents), MaxAgents)
	}
	for id, e := range b.agents {
		if _, err := identity.ParseAgentID(string(id)); err != nil {
			return err
		}
		if e == nil || !e.sane() {
			return fmt.Errorf("agent %s: counts make no sense", id)
		}
	}
	return nil
}

func (e *entry) sane() bool {
	for _, f := range []float64{e.LatencyMS, e.Answered, e.Asked, e.Good, e.Bad} {
		if f < 0 || f > math.MaxInt32 {
			return false
		}
	}
	return e.Answered <= e.Asked
}

// Run writes the book to file path every few minutes, and once more when ctx
// ends. Without a path it only waits.
func (b *Book) Run(ctx context.Context, path string, log *zap.Logger) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := b.save(path); err != nil {
			log.Error("experience is not saved", zap.Error(err))
		}
	}
}

// save writes the book if it has changed, so that a crash leaves the old file or
// the new one.
func (b *Book) save(path string) error {
	b.mu.Lock()
	raw, err := json.Marshal(b.agents)
	dirty := b.dirty
	b.dirty = false
	b.mu.Unlock()
	if err != nil || path == "" || !dirty {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".experience-*")
	if err != nil {
		return fmt.Errorf("write experience: %w", err)
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write experience: %w", err)
	}
	return nil
}
