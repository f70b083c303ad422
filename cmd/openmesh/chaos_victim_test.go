package main

import (
	"cmp"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"openmesh/node/api"
)

// blow is the end of a daemon's life, and what comes until the next.
type blow struct {
	at     int             // falls when the gauge reaches this,
	after  time.Duration   // so much later
	births []time.Duration // lives that end while the daemon starts: so long after the start
	pause  time.Duration   // then nothing runs for so long
}

// schedule plans the same number of blows for two daemons while a gauge rises to
// span: some fall on both at once, some leave a pause, some come again before the
// daemon serves. The last falls on both when span is reached.
func schedule(random *rand.Rand, kills, span int, pause time.Duration) (a, b []blow) {
	draw := func() blow {
		return blow{at: 1 + random.IntN(span), after: time.Duration(random.IntN(20)) * time.Millisecond}
	}
	for i := range kills - 1 {
		x, y := draw(), draw()
		switch i % 5 {
		case 0:
			y.at, y.after = x.at, x.after
		case 1:
			x.births, y.births = births(random), births(random)
		case 2:
			x.pause, y.pause = pause, pause
		}
		a, b = append(a, x), append(b, y)
	}
	for _, blows := range [][]blow{a, b} {
		slices.SortFunc(blows, func(x, y blow) int { return cmp.Compare(x.at, y.at) })
	}
	return append(a, blow{at: span, pause: quiet + 100*time.Millisecond}), append(b, blow{at: span, after: quiet})
}

// quiet is how long a daemon with nothing new to do may take to store what it did.
const quiet = time.Second

func births(random *rand.Rand) (lives []time.Duration) {
	for range 1 + random.IntN(2) {
		lives = append(lives, time.Duration(random.IntN(400))*time.Millisecond)
	}
	return lives
}

// gauge counts up, and lets wait for a count.
type gauge struct {
	mu   sync.Mutex
	n    int
	more chan struct{} // closed at the next step, if somebody waits
}

func (g *gauge) step() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	if g.more != nil {
		close(g.more)
		g.more = nil
	}
}

func (g *gauge) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// reach waits until the count is n, and reports whether it came to that.
func (g *gauge) reach(ctx context.Context, n int) bool {
	for {
		g.mu.Lock()
		if g.n >= n {
			g.mu.Unlock()
			return true
		}
		if g.more == nil {
			g.more = make(chan struct{})
		}
		more := g.more
		g.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return false
		}
	}
}

// life is when a daemon was started, served, and was killed; and how many were
// killed before.
type life struct {
	started, served, died time.Time
	generation            int
}

// victim is a daemon that is killed and started again.
type victim struct {
	home   string
	env    []string
	buried func() // called when it was killed
	agent  string // its id, once it has served

	mu     sync.Mutex
	daemon *daemon
	client *api.Client
	lives  []life
	kills  int
}

// start starts the daemon, and returns once it serves.
func (v *victim) start() error {
	born := life{started: time.Now(), generation: v.kills}
	d, err := startDaemon(v.home, v.env)
	if err != nil {
		return err
	}
	born.served = time.Now()
	client, err := api.Dial(v.home)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.daemon, v.agent, v.lives = d, d.ready.Agent, append(v.lives, born)
	if err == nil {
		v.client = client // calls through the one before may not have failed yet: its connection ended with the daemon
	}
	return err
}

// api is a client of the daemon; its calls fail while that is down.
func (v *victim) api() *api.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.client
}

// kill kills the daemon, if it runs. Calls in progress fail.
func (v *victim) kill() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.daemon == nil {
		return
	}
	v.lives[len(v.lives)-1].died = time.Now()
	v.daemon.crash()
	v.daemon = nil
	v.kills++
	v.buried()
}

// miscarry starts the daemon and kills it so soon that it may not serve yet.
func (v *victim) miscarry(ctx context.Context, age time.Duration) error {
	log, err := os.OpenFile(v.home+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("openmesh", "--home", v.home, "run")
	cmd.Dir, cmd.Env, cmd.Stderr = filepath.Dir(v.home), v.env, log
	if err := cmd.Start(); err != nil {
		return err
	}
	pause(ctx, age)
	(&daemon{cmd: cmd}).crash()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kills++
	v.buried()
	return nil
}

// suffer lets the blows fall.
func (v *victim) suffer(ctx context.Context, blows []blow, g *gauge) error {
	for _, b := range blows {
		if !g.reach(ctx, b.at) {
			return ctx.Err()
		}
		pause(ctx, b.after)
		v.kill()
		for _, age := range b.births {
			if err := v.miscarry(ctx, age); err != nil {
				return err
			}
		}
		pause(ctx, b.pause)
		if err := v.start(); err != nil {
			return err
		}
	}
	return nil
}

// livingAt returns the life that at falls into, if one does.
func (v *victim) livingAt(at time.Time) (life, bool) {
	for _, l := range v.lives {
		if l.started.Before(at) && (l.died.IsZero() || l.died.After(at)) {
			return l, true
		}
	}
	return life{}, false
}

// memory is the daemon's resident memory, now and at most, in MB; zero where the
// system does not tell.
func (v *victim) memory() (now, peak int) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(v.daemon.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			now, _ = strconv.Atoi(f[1]) // the kernel writes a number of kB
		case "VmHWM:":
			peak, _ = strconv.Atoi(f[1])
		}
	}
	return now / 1000, peak / 1000
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
