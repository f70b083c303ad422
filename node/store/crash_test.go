//go:build unix

package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"openmesh/node/store"
	"openmesh/protocols/session/delivery"
)

// child is the variable that makes this program the process that is killed.
const child = "OPENMESH_STORE_CHILD"

func TestMain(m *testing.M) {
	if mode := os.Getenv(child); mode != "" {
		commitForever(mode == "durable", store.Config{URL: os.Getenv(child + "_URL"), Path: os.Getenv(child + "_PATH"), Owner: os.Getenv(child + "_OWNER")})
	}
	os.Exit(m.Run())
}

// commitForever enqueues messages, many at once, and prints the sequence of
// each that the store has said to be committed.
func commitForever(durable bool, c store.Config) {
	s, err := store.Open(context.Background(), c)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, last, err := s.Outbox(context.Background(), delivery.SessionID{1}, 0, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	room := make(chan struct{}, 128)
	for n := last + 1; ; n++ {
		room <- struct{}{}
		s.Commit(enqueue(n), durable, func(err error) {
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println(n) // not buffered
			<-room
		})
	}
}

func TestCrash(t *testing.T) {
	t.Parallel()
	testCrash(t, sqliteConfig(t))
}

// testCrash kills a process that commits, again and again: what it was told to
// be committed is there, and what is there has no holes.
func testCrash(t *testing.T, c store.Config) {
	for round := range 6 {
		mode := []string{"durable", "not durable"}[round%2]
		acknowledged := killed(t, mode, c, 1+rand.IntN(2000))
		s := open(t, c)
		pending, last, err := s.Outbox(t.Context(), delivery.SessionID{1}, 0, 1<<20)
		if err != nil || last < acknowledged || uint64(len(pending)) != last {
			t.Fatalf("round %d, %s: acknowledged up to %d; stored %d up to %d; error %v", round, mode, acknowledged, len(pending), last, err)
		}
		closed(t, s)
	}
}

// killed runs the child until it has printed some lines, kills it, and returns
// the last sequence printed.
func killed(t *testing.T, mode string, c store.Config, lines int) (acknowledged uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+mode, child+"_URL="+c.URL, child+"_PATH="+c.Path, child+"_OWNER="+c.Owner)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for scanner := bufio.NewScanner(out); scanner.Scan(); n++ {
		if n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		if acknowledged, err = strconv.ParseUint(scanner.Text(), 10, 64); err != nil {
			t.Errorf("the child says: %s", scanner.Text())
		}
	}
	if err := cmd.Wait(); err == nil || n < lines {
		t.Fatalf("the child ended by itself after %d lines: %v", n, err)
	}
	return acknowledged
}
