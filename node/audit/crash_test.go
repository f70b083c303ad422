//go:build unix

package audit_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/protocols/identity"
)

// child is the variable that makes this program the process that is killed; its
// value is the path of the database.
const child = "OPENMESH_AUDIT_CHILD"

// appendForever appends from many goroutines, and prints the index and the number
// of each entry that was acknowledged.
func appendForever(path string) {
	agent := identity.AgentID(os.Getenv(child + "_AGENT"))
	db, err := store.Open(context.Background(), store.Config{Path: path, Owner: string(agent)})
	if err == nil {
		var l *audit.Log
		if l, err = audit.Open(context.Background(), audit.Config{DB: db, Agent: agent}); err == nil {
			for g := range 31 {
				go appendFrom(l, g)
			}
			appendFrom(l, 31)
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

func appendFrom(l *audit.Log, g int) {
	for n := g; ; n += 32 {
		l.Note(numbered(n))
		first, _, err := l.Commit(context.Background(), "test", nil, numbered(n), numbered(n))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Stdout.WriteString(fmt.Sprintf("%d %d\n", first, n)) // not buffered
	}
}

// A process that is killed while many append leaves a log that holds, with every
// entry that was acknowledged.
func TestCrash(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if err := b.db.Close(); err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		acknowledged := killed(t, b, 100+300*round)
		b.open()
		held := b.checkpoint()
		if r := b.verify(held.Bytes()); !r.OK {
			t.Fatalf("round %d: %v", round, r.Bad)
		}
		for first, n := range acknowledged {
			for i := range uint64(2) {
				if e, err := b.log.Get(t.Context(), first+i); err != nil || e.Note != numbered(n).Note {
					t.Fatalf("round %d: entry %d was acknowledged as %d, and is %q, %v", round, first+i, n, e.Note, err)
				}
			}
		}
		if err := b.db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killed runs the child until it has acknowledged some, and kills it.
func killed(t *testing.T, b *bench, lines int) map[uint64]int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+b.path, child+"_AGENT="+string(b.agent.Agent))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := make(map[uint64]int)
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		first, n, _ := strings.Cut(scanner.Text(), " ")
		index, err := strconv.ParseUint(first, 10, 64)
		number, err2 := strconv.Atoi(n)
		if err != nil || err2 != nil {
			t.Errorf("the child says: %s", scanner.Text())
			continue
		}
		if acknowledged[index] = number; len(acknowledged) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || len(acknowledged) < lines {
		t.Fatalf("the child ended by itself after %d lines: %v", len(acknowledged), err)
	}
	return acknowledged
}
