package api_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func TestShutdownDrains(t *testing.T) {
	t.Parallel()
	began, finish := make(chan bool), make(chan bool)
	s := identified()
	s.session.call = func(context.Context, *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
		began <- true
		<-finish
		return &openmeshv1.CallResponse{Agent: "late"}, nil
	}
	d := start(t, s, nil)
	c := d.dial(t)
	watch, err := c.Session.Watch(t.Context(), &openmeshv1.WatchSessionsRequest{})
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	answer := make(chan string, 1)
	go func() {
		res, err := c.Session.Call(t.Context(), &openmeshv1.CallRequest{})
		answer <- fmt.Sprint(res.GetAgent(), err)
	}()
	<-began
	ended := make(chan error, 1)
	go func() { ended <- d.stop() }()
	if watch.Receive() || watch.Err() != nil { // streams end at once
		t.Errorf("watch ended with %v", watch.Err())
	}
	select {
	case <-ended:
		t.Error("Run returned with a call in progress")
	default:
	}
	close(finish)
	if got := <-answer; got != "late<nil>" {
		t.Errorf("the call in progress got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, left := range []string{"api.sock", "api.addr"} {
		if _, err := os.Lstat(filepath.Join(d.home, left)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
	if _, err := api.Dial(d.home); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("Dial = %v", err)
	}
}

func TestShutdownCutsAfterGrace(t *testing.T) {
	t.Parallel()
	began := make(chan bool, 1)
	s := identified()
	s.session.call = func(ctx context.Context, _ *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
		began <- true
		<-ctx.Done()
		return nil, ctx.Err()
	}
	d := start(t, s, func(c *api.Config) { c.Grace = time.Millisecond })
	c := d.dial(t)
	failed := make(chan error, 1)
	go func() {
		_, err := c.Session.Call(t.Context(), &openmeshv1.CallRequest{})
		failed <- err
	}()
	<-began
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("the caller got %v", err)
	}
}
