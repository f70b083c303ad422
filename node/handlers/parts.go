package handlers

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// lines are the lines of what a handler writes, one at a time: no more is read
// than the next line, and a line is bounded.
type lines struct {
	*bufio.Scanner
	source *source
	limit  int
}

// source remembers how reading ended: a line that was cut short must not pass for
// a whole one.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func newLines(r io.Reader, limit int) *lines {
	const room = 16 // for the name of a field and the end of the line
	l := &lines{source: &source{Reader: r}, limit: limit}
	l.Scanner = bufio.NewScanner(l.source)
	l.Buffer(nil, limit+room)
	l.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if atEOF && l.source.err != nil && bytes.IndexByte(data, '\n') < 0 {
			return len(data), nil, nil
		}
		return bufio.ScanLines(data, atEOF)
	})
	return l
}

// failure is why there are no more lines; nil if they ended.
func (l *lines) failure() error {
	if errors.Is(l.Err(), bufio.ErrTooLong) {
		return tooLong(l.limit)
	}
	return l.Err()
}

// sendLines sends each line that is not blank, as in newline-delimited JSON.
func sendLines(r io.Reader, limit int, send func([]byte) error) error {
	l := newLines(r, limit)
	for l.Scan() {
		line := bytes.TrimSpace(l.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := send(line); err != nil {
			return err
		}
	}
	return l.failure()
}

// lastEvent is the data by which the servers of language models end their events.
const lastEvent = "[DONE]"

// sendEvents sends the data of each server-sent event
// (https://html.spec.whatwg.org/multipage/server-sent-events.html). Names, ids and
// an event that was cut short count for nothing.
func sendEvents(r io.Reader, limit int, send func([]byte) error) error {
	l := newLines(r, limit)
	var data []byte
	for l.Scan() {
		line := bytes.TrimPrefix(l.Bytes(), []byte("\ufeff"))
		if len(line) > 0 {
			var err error
			if data, err = appendEvent(data, line, limit); err != nil {
				return err
			}
			continue
		}
		event := bytes.TrimSuffix(data, []byte("\n"))
		data = data[:0]
		if string(event) == lastEvent {
			return nil
		}
		if len(event) == 0 {
			continue
		}
		if err := send(event); err != nil {
			return err
		}
	}
	return l.failure()
}

// appendEvent appends what a line adds to its event's data, of which each line
// ends with a line feed.
func appendEvent(data, line []byte, limit int) ([]byte, error) {
	field, value, _ := bytes.Cut(line, []byte(":"))
	if string(field) != "data" {
		return data, nil
	}
	value = bytes.TrimPrefix(value, []byte(" "))
	if len(data)+len(value) > limit {
		return nil, tooLong(limit)
	}
	return append(append(data, value...), '\n'), nil
}
