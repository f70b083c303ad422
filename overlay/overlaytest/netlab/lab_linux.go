package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"openmesh/overlay/overlaytest/netlab/cloud"
)

// Lab is an isolated network that ends with its test. Its methods, and those of
// what it makes, are called from the test's goroutine where they do not say
// otherwise; they end the test when something fails.
type Lab struct {
	t          testing.TB
	dir        string // short: names of unix sockets are limited
	namespaces []*Namespace
	wire       *Namespace   // has the switch
	cloud      *cloud.Cloud // instead of the switch, if there is one
	addrs      int          // public ones given out
}

// New returns a lab with no hosts. It skips the test if the environment does not ask
// for labs with OPENMESH_NETLAB=require, and fails it where namespaces cannot be had.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Getenv("OPENMESH_NETLAB") != "require" {
		t.Skip("network lab: needs root and minutes; OPENMESH_NETLAB=require runs it")
	}
	if err := available(); err != nil {
		t.Fatalf("network lab: %v", err)
	}
	sweep()
	dir, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{t: t, dir: dir}
	t.Cleanup(l.close)
	l.wire = l.Namespace("switch")
	l.wire.IP("link add name br0 type bridge", "link set br0 up")
	return l
}

// available says what is missing, if anything is.
func available() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	for _, name := range []string{"ip", "nft", "nsenter"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("needs the program %s", name)
		}
	}
	file, err := unshare() // a container's root may not
	if err != nil {
		return fmt.Errorf("needs network namespaces: %w", err)
	}
	return file.Close()
}

// dirPrefix begins the names of folders; the process's id and a random part
// follow.
const dirPrefix = "netlab-"

func makeDir() (string, error) { return os.MkdirTemp("", fmt.Sprintf("%s%d-", dirPrefix, os.Getpid())) }

// sweep removes the folders of processes that were killed: nothing else of their
// labs is left.
func sweep() {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*-*"))
	if err != nil {
		return // no such pattern
	}
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			_ = os.RemoveAll(dir) // or the next one does
		}
	}
}

// Dir is a folder for the lab's files. It ends with the lab.
func (l *Lab) Dir() string { return l.dir }

// Link is what lies between any two public addresses: delay, jitter and loss. A
// LAN has none.
type Link = cloud.Link

// Cloud has packets between public addresses pass a link; by itself a lab has no
// delay worth the name and loses nothing. Call it before the first host is made.
func (l *Lab) Cloud(link Link) {
	l.t.Helper()
	if l.addrs > 0 || l.cloud != nil {
		l.t.Fatal("network lab: Cloud comes before the first host, once")
	}
	l.cloud = cloud.New(link)
}

// Host is a namespace with one interface, eth0, on the lab's switch or on the LAN
// of a router.
type Host struct {
	*Namespace
	Addr     netip.Addr
	Router   *Router // that the host is behind; nil for none
	firewall *Firewall
}

// Host adds a public host: the first has the address 5.0.1.1, the next 5.0.2.1,
// and all reach each other.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	ns, addr := l.Namespace(name), l.nextAddr()
	l.Plug(ns, "eth0", netip.PrefixFrom(addr, publicBits))
	return &Host{Namespace: ns, Addr: addr, firewall: &Firewall{ns: ns, device: "eth0"}}
}

// Link pulls the host's cable (false) or puts it back (true). Nobody is told, not
// even the host: what is sent is lost.
func (h *Host) Link(up bool) {
	h.t.Helper()
	h.firewall.cut(!up)
}

// publicBits is the length of the prefix of all public addresses, 5.0.0.0/16.
const publicBits = 16

func (l *Lab) nextAddr() netip.Addr {
	l.t.Helper()
	if l.addrs++; l.addrs > 255 {
		l.t.Fatal("network lab: no public address is left")
	}
	return netip.AddrFrom4([4]byte{5, 0, byte(l.addrs), 1})
}

// Plug gives a namespace an interface on the lab's switch.
func (l *Lab) Plug(ns *Namespace, device string, addr netip.Prefix) {
	l.t.Helper()
	if l.cloud != nil {
		if err := l.cloud.Plug(ns.Do, device, addr.Addr()); err != nil {
			l.t.Fatal(err)
		}
		ns.up(device)
		ns.IP("link set " + device + " txqueuelen 10000") // what is lost is lost in the cloud
	} else {
		port := fmt.Sprintf("port%d", len(l.wire.devices))
		l.Link(ns, device, l.wire, port)
		l.wire.IP("link set " + port + " master br0")
	}
	ns.IP("addr add " + addr.String() + " dev " + device)
}

// Link joins two namespaces by a cable, with an interface at each end that is up
// and has no address.
func (l *Lab) Link(a *Namespace, deviceA string, b *Namespace, deviceB string) {
	l.t.Helper()
	a.IP(fmt.Sprintf("link add %s type veth peer name %s netns %s", deviceA, deviceB, b.path()))
	a.up(deviceA)
	b.up(deviceB)
}

// close ends what still runs in the lab and lets go of its namespaces.
func (l *Lab) close() {
	l.killProcesses()
	if l.cloud != nil {
		l.cloud.Close()
	}
	for _, ns := range l.namespaces {
		if err := ns.file.Close(); err != nil {
			l.t.Errorf("close namespace %s: %v", ns.Name, err)
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.t.Errorf("remove the lab's files: %v", err)
	}
}

// killProcesses ends every process in the lab's namespaces: children of a daemon
// may outlive it.
func (l *Lab) killProcesses() {
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		l.t.Error(err)
	}
	for _, link := range links {
		info, err := os.Stat(link)
		if err != nil || !l.owns(info) {
			continue // it ended, or is no business of ours
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // fails if it has just ended
		}
	}
}

func (l *Lab) owns(namespace os.FileInfo) bool {
	for _, ns := range l.namespaces {
		if os.SameFile(namespace, ns.info) {
			return true
		}
	}
	return false
}

// Main runs a test binary whose tests use [Lab.Daemon]; call it from TestMain.
// It builds the program once for all of them, unless OPENMESH_BINARY names one,
// and returns the exit code.
func Main(m *testing.M) int {
	if os.Getenv(programEnv) != "" || available() != nil {
		return m.Run()
	}
	dir, err := makeDir()
	if err == nil {
		defer os.RemoveAll(dir)
		err = build(filepath.Join(dir, "openmesh"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "network lab:", err)
		return 1
	}
	return m.Run()
}

// programEnv is the variable that names the program under test.
const programEnv = "OPENMESH_BINARY"

// build makes the program and leaves its name to the tests.
func build(file string) error {
	cmd := exec.CommandContext(context.Background(), "go", "build", "-o", file, "openmesh/cmd/openmesh")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return os.Setenv(programEnv, file)
}
