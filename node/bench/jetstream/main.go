// Command jetstream is what `openmesh bench durable --jetstream PROGRAM` compares
// with: NATS JetStream with file storage, its embedded server in one process per
// way of syncing and the publishers in this one. It is a program of its own so
// that no message broker is linked into openmesh. It is spoken to as package load
// says:
//
//	go build -o jetstream ./node/bench/jetstream
//	openmesh bench durable --jetstream ./jetstream
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"openmesh/node/bench/load"
)

const (
	subject = "bench.durable"
	patient = 10 * time.Second // for a server to be ready, an ack to come
)

// The ways of syncing: what JetStream's sync_interval says.
const (
	always   = "sync always"
	interval = "sync default"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// run is the server for one way of syncing (serve FOLDER WAY), or the publishers.
func run(ctx context.Context, args []string, in io.Reader, out io.Writer) (err error) {
	if len(args) == 3 && args[0] == "serve" {
		return serve(ctx, args[1], args[2], out)
	}
	if len(args) != 1 {
		return errors.New("usage: jetstream FOLDER")
	}
	p := publishers{}
	defer func() { err = errors.Join(err, p.stop()) }()
	for _, way := range []string{always, interval} {
		if err := p.start(ctx, args[0], way); err != nil {
			return fmt.Errorf("start a server, %s: %w", way, err)
		}
	}
	return load.ServeOrders(ctx, in, out, load.Greeting{
		Name: "NATS JetStream " + server.VERSION, Ways: []string{always, interval},
		Method: []string{
			"JetStream: one server, one stream with one replica in a file, publishers on one TCP connection without TLS; a publisher waits for the server's ack",
			always + ": the ack says that the message is stored and synced at the server (sync_interval: always); nobody has consumed it",
			interval + ": the ack says that the server has written the message, which a sync follows within 2 minutes: a power failure may lose it",
		},
	}, p.sample)
}

// publishers hold a server process and a connection for each way.
type publishers map[string]*publisher

type publisher struct {
	server *exec.Cmd
	conn   *nats.Conn
	js     jetstream.JetStream
}

// start starts a server of this program and connects to it.
func (ps publishers) start(ctx context.Context, dir, way string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p := &publisher{server: exec.CommandContext(ctx, self, "serve", filepath.Join(dir, strings.ReplaceAll(way, " ", "-")), way)}
	p.server.Cancel = func() error { return p.server.Process.Signal(syscall.SIGTERM) }
	p.server.Stderr = os.Stderr
	out, err := p.server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.server.Start(); err != nil {
		return err
	}
	ps[way] = p
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return err
	}
	return p.connect(ctx, strings.TrimSpace(url))
}

func (p *publisher) connect(ctx context.Context, url string) (err error) {
	if p.conn, err = nats.Connect(url); err != nil {
		return err
	}
	if p.js, err = jetstream.New(p.conn); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	_, err = p.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "BENCH", Subjects: []string{subject}, Storage: jetstream.FileStorage, Replicas: 1,
		MaxBytes: 1 << 30, Discard: jetstream.DiscardOld,
	})
	return err
}

// sample has so many publishers publish, each waiting for the ack.
func (ps publishers) sample(ctx context.Context, o load.Order) (load.Sample, error) {
	p := ps[o.Way]
	if p == nil || o.Workers < 1 || o.Payload < 0 {
		return load.Sample{}, fmt.Errorf("order %+v makes no sense", o)
	}
	body := make([]byte, o.Payload)
	publish := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patient)
		defer cancel()
		_, err := p.js.Publish(ctx, subject, body)
		return err
	}
	return load.Run(ctx, load.Config{
		Workers: o.Workers, Time: time.Duration(o.TimeMs) * time.Millisecond,
		New: func(context.Context) (load.Worker, error) { return load.Worker{Do: publish}, nil },
	})
}

func (ps publishers) stop() (err error) {
	for _, p := range ps {
		if p.conn != nil {
			p.conn.Close()
		}
		if e := p.server.Process.Signal(syscall.SIGTERM); e != nil && !errors.Is(e, os.ErrProcessDone) {
			err = errors.Join(err, e)
		}
		err = errors.Join(err, p.server.Wait())
	}
	return err
}

// serve runs an embedded server until ctx ends, and prints its URL once it is
// ready.
func serve(ctx context.Context, dir, way string, out io.Writer) error {
	opts := &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: dir, SyncAlways: way == always,
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(patient) {
		return errors.New("the server is not ready")
	}
	fmt.Fprintln(out, s.ClientURL())
	<-ctx.Done()
	return nil
}
