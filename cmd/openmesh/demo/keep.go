package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Kept is a mesh that was left running.
type Kept struct {
	Folder  string   `json:"folder"`  // of homes, logs and the program
	Program string   `json:"program"` // a copy: the one that ran the demo may go away
	Try     []string `json:"try"`     // shell commands that talk to the mesh
	Stop    string   `json:"stop"`    // shell command that ends it and removes the folder
}

// keepProgram puts the program where the mesh is: `go run` removes its own
// when the demo ends.
func (m *mesh) keepProgram() error {
	to := filepath.Join(m.dir, "openmesh")
	if err := os.Link(m.cfg.Program, to); err != nil { // perhaps another file system
		if err := copyFile(m.cfg.Program, to); err != nil {
			return fmt.Errorf("keep the program: %w", err)
		}
	}
	m.cfg.Program = to
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// keep gives what this process served to handlers that outlive it.
func (m *mesh) keep(ctx context.Context, s *Step) error {
	for _, n := range slices.Concat(m.providers(), []*node{m.remote.ruth}) {
		for i, o := range n.offers {
			n.offers[i].Handler = execHandler(m.cfg.Program, o.Name)
			if err := n.add(ctx, n.offers[i]); err != nil {
				return err
			}
		}
	}
	if err := m.writeStop(); err != nil {
		return err
	}
	for _, n := range m.nodes() {
		n.api.Close()
	}
	if err := m.desk.close(); err != nil {
		return err
	}
	s.Facts["folder"] = m.dir
	s.Say("all capabilities now have exec handlers, which need no demo")
	return nil
}

// stopFormat is a script that ends all daemons and removes the folder once they
// have ended, or ten seconds have passed.
const stopFormat = `# Ends the mesh of this folder and removes it.
pids="%s"
kill $pids 2>/dev/null
tries=0
for pid in $pids; do
  while kill -0 $pid 2>/dev/null && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
done
rm -r %s
`

func (m *mesh) stopScript() string { return filepath.Join(m.dir, "stop") }

func (m *mesh) writeStop() error {
	var pids []string
	for _, n := range m.nodes() {
		pids = append(pids, fmt.Sprint(n.proc.cmd.Process.Pid))
	}
	text := fmt.Sprintf(stopFormat, strings.Join(pids, " "), shellWord(m.dir))
	if err := os.WriteFile(m.stopScript(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write how to end the mesh: %w", err)
	}
	return nil
}

// kept says how to talk to the mesh that stays.
func (m *mesh) kept() *Kept {
	ask := shellWord(m.cfg.Program) + " --home " + shellWord(m.consumer().home)
	return &Kept{Folder: m.dir, Program: m.cfg.Program, Stop: "sh " + shellWord(m.stopScript()), Try: []string{
		ask + " discover " + family,
		ask + " call " + sumName + ` '{"numbers":[1,2,3]}'`,
		ask + " call " + countName + ` '{"text":"hello mesh"}'`,
		ask + " session list",
		ask + " relays",
		ask + " market contract list --all",
		ask + " audit verify",
	}}
}

// shellWord quotes what is not plain in a shell.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
