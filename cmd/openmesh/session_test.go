package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

func TestVerdict(t *testing.T) {
	t.Parallel()
	is := func(status, code string) *openmeshv1.Delivery {
		return &openmeshv1.Delivery{Status: status, Code: code, Sequence: 7, Address: "64512:0000.0000.0001", Session: "5f2c", Key: "k"}
	}
	delivered, pending, expired := is("delivered", ""), is("pending", ""), is("expired", "")
	for _, tc := range []struct {
		name       string
		deliveries []*openmeshv1.Delivery
		wait       time.Duration
		exit       int
		code       string
		hint       string
	}{
		{"delivered", []*openmeshv1.Delivery{delivered, delivered}, time.Second, exitDone, "", ""},
		{"accepted", []*openmeshv1.Delivery{pending}, 0, exitDone, "", ""},
		{"pending", []*openmeshv1.Delivery{delivered, pending}, time.Second, exitTimedOut, "deadline_exceeded", "session outcome 5f2c k --wait"},
		{"expired", []*openmeshv1.Delivery{pending, expired}, time.Second, exitTimedOut, "deadline_exceeded", "--ttl"},
		{"failed", []*openmeshv1.Delivery{pending, expired, is("failed", "handler_failed")}, 0, exitFailed, "handler_failed", "another key"},
		{"denied there", []*openmeshv1.Delivery{is("failed", "denied")}, 0, exitFailed, "denied", "another key"},
		{"unknown code", []*openmeshv1.Delivery{is("failed", "too_new")}, 0, exitFailed, "internal", "another key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := verdict(tc.deliveries, tc.wait)
			if tc.exit == exitDone {
				if err != nil {
					t.Error(err)
				}
				return
			}
			p := newProgram(nil, io.Discard, io.Discard, nil)
			f := p.explain(p.root(), err)
			if exitCode(err) != tc.exit || f.Code != tc.code || !strings.Contains(f.Hint, tc.hint) || !strings.HasPrefix(f.Message, "message 7 to ") {
				t.Errorf("exit code %d, %+v", exitCode(err), f)
			}
		})
	}
}

func TestEachLine(t *testing.T) {
	t.Parallel()
	stop := errors.New("enough")
	for _, tc := range []struct {
		name, in string
		want     []string
		wrong    string // part of the error
	}{
		{"none", "", nil, ""},
		{"empty lines", "\n1\n\n{\"a\": [2]}\n", []string{"2:1", `4:{"a": [2]}`}, ""},
		{"no end", "1\n\"x\"", []string{"1:1", `2:"x"`}, ""},
		{"carriage return", "1\r\n2\r\n", []string{"1:1", "2:2"}, ""},
		{"not JSON", "1\ntwo\n3\n", []string{"1:1"}, "line 2 is not JSON"},
		{"two documents", "1 2\n", nil, "line 1 is not JSON"},
		{"stopped", "1\n\"stop\"\n3\n", []string{"1:1"}, "enough"},
		{"too long", "1\n" + strings.Repeat(" ", maxData) + "2\n", []string{"1:1"}, "read line 2: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			err := eachLine(t.Context(), strings.NewReader(tc.in), func(number int, text string) error {
				if text == `"stop"` {
					return stop
				}
				got = append(got, string(rune('0'+number))+":"+text)
				return nil
			})
			if !slices.Equal(got, tc.want) || (err == nil) != (tc.wrong == "") || err != nil && !strings.Contains(err.Error(), tc.wrong) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tc.want, tc.wrong)
			}
		})
	}
}

// Somebody who types nothing must not keep the program from ending.
func TestEachLineInterrupted(t *testing.T) {
	t.Parallel()
	silent, typed := io.Pipe()
	defer typed.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := eachLine(ctx, silent, func(int, string) error { t.Error("a line from nowhere"); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestLineRequest(t *testing.T) {
	t.Parallel()
	s := &sending{req: openmeshv1.SendRequest{Session: "5f2c", Capability: "a/b", WaitMs: 5}}
	durable, fleeting := &lineSender{sending: s, durable: true}, &lineSender{sending: s}
	if r := durable.request(3, "{}"); r.Key != "" || r.WaitMs != 0 || r.Capability != "a/b" || r.GetJson() != "{}" {
		t.Errorf("durable: %v", r)
	}
	if r := fleeting.request(3, "{}"); r.WaitMs != 5 {
		t.Errorf("at most once, only the sending can wait: %v", r)
	}
	s.req.Key = "batch"
	if r := durable.request(3, "{}"); r.Key != "batch/3" {
		t.Errorf("key %q", r.Key)
	}
}

func TestInboxInOrder(t *testing.T) {
	t.Parallel()
	inbox := inboxOf(&openmeshv1.ReceiveResponse{
		Messages: []*openmeshv1.ReceivedMessage{
			{Sequence: 2, Key: "k\x1b", Received: "2026-01-02T03:04:05Z", Body: &openmeshv1.ReceivedMessage_Json{Json: "{\"a\":\n 1}"}},
			{Sequence: 9, Key: "l", Received: "2026-01-02T03:04:06Z", Redelivered: true, Body: &openmeshv1.ReceivedMessage_Protobuf{Protobuf: []byte{1, 2}}},
			{Sequence: 10, Key: "m", Received: "2026-01-02T03:04:07Z", Body: &openmeshv1.ReceivedMessage_Json{Json: "no JSON"}},
		},
		Gaps: []*openmeshv1.Gap{{From: 1, To: 1}, {From: 3, To: 8}}, Cursor: 10,
	})
	for _, tc := range []struct {
		json bool
		want []string
	}{
		{false, []string{
			"1\tnever came", "2\t2026-01-02T03:04:05Z\tk\\u001b\t{\"a\":1}", "3-8\tnever came",
			"9\t2026-01-02T03:04:06Z\tl\t2 bytes of Protobuf (again)", "10\t2026-01-02T03:04:07Z\tm\t-",
		}},
		{true, []string{
			`{"gap":{"from":1,"to":1}}`, `{"sequence":2,"key":"k\u001b","body":{"a":1},`, `{"gap":{"from":3,"to":8}}`,
			`{"sequence":9,"key":"l","body":null,"protobuf":"AQI=",`, `{"sequence":10,"key":"m","body":null,`,
		}},
	} {
		var out bytes.Buffer
		p := newProgram(nil, &out, io.Discard, nil)
		p.json = tc.json
		if err := p.printEntries(inbox.entries()); err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if !slices.EqualFunc(got, tc.want, func(line, want string) bool { return line == want || tc.json && strings.HasPrefix(line, want) }) {
			t.Errorf("got\n%s\nwant\n%s", out.String(), strings.Join(tc.want, "\n"))
		}
	}
}

func TestMilliseconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]uint32{0: 0, time.Millisecond: 1, 1500 * time.Microsecond: 1, time.Hour: 3_600_000} {
		if got, err := limit(d).milliseconds("ttl"); err != nil || got != want {
			t.Errorf("%s: %d, %v", d, got, err)
		}
	}
	for _, d := range []time.Duration{time.Microsecond, 2000 * time.Hour} {
		if _, err := limit(d).milliseconds("ttl"); exitCode(err) != exitUsage {
			t.Errorf("%s: %v", d, err)
		}
	}
	if code := wire.CodeOf(failedDelivery(&openmeshv1.Delivery{Code: "denied"})); code != wire.Denied {
		t.Errorf("code %s", code)
	}
}
