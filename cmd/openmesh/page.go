package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"openmesh/node/api"
)

// page is output for people: aligned and coloured on a terminal, separated by
// tabs and without decoration elsewhere.
type page struct {
	w        io.Writer
	terminal bool
	style    style
}

// show prints the answer of a command: the message itself with --json, else
// what human makes of it.
func (p *program) show(m proto.Message, human func(*page)) error {
	if !p.json {
		return p.print(human)
	}
	doc, err := api.MarshalJSON(m)
	if err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	return p.document(doc)
}

// showValue is show for a document that is no Protobuf message.
func (p *program) showValue(v any, human func(*page)) error {
	if !p.json {
		return p.print(human)
	}
	doc, err := oneLine(v)
	if err != nil {
		return err
	}
	return p.document(bytes.TrimSpace(doc))
}

// oneLine returns v as JSON, with the end of the line.
func oneLine(v any) ([]byte, error) {
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("print as JSON: %w", err)
	}
	return doc.Bytes(), nil
}

// document prints JSON: on one line for programs, indented for people.
func (p *program) document(doc []byte) error {
	text := string(doc)
	if isTerminal(p.out) {
		text = printable(indented(doc))
	}
	_, err := fmt.Fprintln(p.out, text)
	return err
}

// line prints JSON on one line, as one of many.
func (p *program) line(m proto.Message) error {
	doc, err := api.MarshalJSON(m)
	if err != nil {
		return fmt.Errorf("print as JSON: %w", err)
	}
	_, err = fmt.Fprintf(p.out, "%s\n", doc)
	return err
}

// print prints what human writes, in one piece.
func (p *program) print(human func(*page)) error {
	var text bytes.Buffer
	human(&page{w: &text, terminal: isTerminal(p.out), style: p.style(p.out)})
	_, err := p.out.Write(text.Bytes())
	return err
}

// note tells people something that is not the answer.
func (p *program) note(format string, args ...any) {
	if !p.json {
		fmt.Fprintln(p.err, p.style(p.err).dim(printable(fmt.Sprintf(format, args...))))
	}
}

// warn tells people what a document lost in translation.
func (p *program) warn(warnings []string) {
	for _, w := range warnings {
		p.note("warning: %s", w)
	}
}

func indented(doc []byte) string {
	var out bytes.Buffer
	if err := json.Indent(&out, doc, "", "  "); err != nil {
		return string(doc)
	}
	return out.String()
}

// table prints rows under a heading.
func (g *page) table(head []string, rows [][]string) {
	widths := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			row[i] = strings.ReplaceAll(printable(cell), "\n", " ")
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	g.row(head, widths, g.style.dim)
	for _, row := range rows {
		g.row(row, widths, g.style.word)
	}
}

func (g *page) row(cells []string, widths []int, tint func(string) string) {
	for i, cell := range cells {
		last := i == len(cells)-1
		switch {
		case !g.terminal && last:
			fmt.Fprintln(g.w, cell)
		case !g.terminal:
			fmt.Fprint(g.w, cell, "\t")
		case last:
			fmt.Fprintln(g.w, tint(cell))
		default:
			fmt.Fprint(g.w, tint(cell), strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
	}
}

// fields prints names with their values; those without a value are left out.
func (g *page) fields(pairs ...string) {
	var width int
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			g.row([]string{pairs[i], strings.ReplaceAll(printable(pairs[i+1]), "\n", " ")}, []int{width, 0}, g.style.word)
		}
	}
}

func (g *page) text(format string, args ...any) {
	fmt.Fprintln(g.w, printable(fmt.Sprintf(format, args...)))
}

// id shortens an agent or peer id where people read it in a table.
func (g *page) id(id string) string {
	const head, tail = 6, 4
	prefix, key, ok := strings.Cut(id, "did:key:")
	if !ok || prefix != "" {
		key = id
	}
	if !g.terminal || len(key) <= head+tail+1 {
		return id
	}
	return key[:head] + "…" + key[len(key)-tail:]
}

// when shows a time of RFC 3339: as it is to programs, as a distance to people.
func (g *page) when(stamp string, now time.Time) string {
	t, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil || !g.terminal {
		return stamp
	}
	if d := t.Sub(now); d >= 0 {
		return "in " + rough(d)
	}
	return rough(now.Sub(t)) + " ago"
}

// rough is a duration with one unit.
func rough(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return strconv.Itoa(int(d/day)) + "d"
	case d >= 2*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d >= 2*time.Minute:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	}
	return strconv.Itoa(int(d/time.Second)) + "s"
}

// number prints a measured value with at most the given decimals.
func number(v float64, decimals int) string {
	text := strconv.FormatFloat(v, 'f', decimals, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// printable escapes what could steer a terminal: most of what is printed was
// written by other agents. In JSON the escapes mean the same characters.
func printable(s string) string {
	if strings.IndexFunc(s, steers) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if !steers(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

func steers(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// style colours words, or does not.
type style bool

// style says whether a stream may be coloured (no-color.org).
func (p *program) style(w io.Writer) style {
	return style(isTerminal(w) && p.getenv("NO_COLOR") == "" && p.getenv("TERM") != "dumb")
}

func (s style) paint(code, text string) string {
	if !s || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) dim(text string) string    { return s.paint("2", text) }
func (s style) red(text string) string    { return s.paint("31", text) }
func (s style) green(text string) string  { return s.paint("32", text) }
func (s style) yellow(text string) string { return s.paint("33", text) }

// word colours the words that say how something is.
func (s style) word(text string) string {
	switch text {
	case "ok", "active", "valid", "public", "direct", "holepunched", "open", "contracted", "fulfilled":
		return s.green(text)
	case "warn", "migrating", "draining", "expiring", "relayed", "mailbox", "private", "you", "settling":
		return s.yellow(text)
	case "fail", "failed", "terminated", "expired", "not_yet_valid", "unreachable", "partitioned", "withdrawn", "rejected", "cancelled":
		return s.red(text)
	}
	return text
}
