//go:build linux

package netlab_test

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// postgresEnv asks for the tests that need PostgreSQL, whose programs are in PATH. A
// server that it names is not used: a lab has no link to the machine's network.
const postgresEnv = "OPENMESH_TEST_POSTGRES"

// newPostgres runs a server until the test ends, and returns the URL of its database.
// It is reached by a socket in the file system, which all namespaces share.
func newPostgres(t *testing.T) (url string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "postgres") // t.TempDir is closed to the server's user
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	owner, err := user.Lookup("postgres") // it refuses to run as root
	check(t, err)
	uid, err := strconv.Atoi(owner.Uid)
	check(t, err)
	gid, err := strconv.Atoi(owner.Gid)
	check(t, err)
	check(t, os.Chown(dir, uid, gid))
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if err := cmd.Run(); err != nil { // its output would be kept open by the server
			t.Fatalf("%s: %v", cmd, err)
		}
	}
	data := filepath.Join(dir, "data")
	ctl := func(args ...string) {
		t.Helper()
		options := "-c listen_addresses='' -c unix_socket_directories='" + dir + "'"
		run("pg_ctl", append([]string{"-w", "-s", "-D", data, "-l", filepath.Join(dir, "log"), "-o", options}, args...)...)
	}
	run("initdb", "-D", data, "-U", "mesh", "--auth=trust", "--no-sync")
	ctl("start")
	t.Cleanup(func() { ctl("stop", "-m", "immediate") })
	return "postgres://mesh@/postgres?host=" + dir
}
