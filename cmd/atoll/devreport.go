package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// maxReportQueue is how many lines may wait for a terminal that stands still
// (Ctrl-S); what comes after them is dropped, since the nodes must not wait too.
const maxReportQueue = 1024

const (
	// repeatAfter is how long a node's warning is not shown again.
	repeatAfter = 30 * time.Second
	// maxRecentWarnings bounds how many are remembered for that.
	maxRecentWarnings = 256
)

// devReport is what dev says: to people, or to programs as JSON lines. All of it
// passes through one queue to one writer.
type devReport struct {
	json     bool
	terminal bool
	out      io.Writer
	queue    chan []byte
	dropped  atomic.Uint64
	// quiet holds the nodes' warnings back while they form or stop, when it is
	// normal that they miss each other.
	quiet atomic.Bool
	mu    sync.Mutex // guards recent
	// recent is when a warning of a node was last shown.
	recent map[string]time.Time
	// overwrite is true while the last line on the terminal is a progress line;
	// it belongs to Run.
	overwrite bool
}

func newDevReport(out io.Writer, asJSON bool) *devReport {
	r := &devReport{json: asJSON, out: out, queue: make(chan []byte, maxReportQueue), recent: map[string]time.Time{}}
	if file, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		r.terminal = err == nil
	}
	return r
}

// Run writes until ctx ends, and then what is still queued.
func (r *devReport) Run(ctx context.Context) error {
	for {
		select {
		case line := <-r.queue:
			if err := r.write(line); err != nil {
				return err
			}
		case <-ctx.Done():
			for len(r.queue) > 0 {
				if err := r.write(<-r.queue); err != nil {
					return err
				}
			}
			return nil
		}
	}
}

func (r *devReport) write(line []byte) error {
	if r.overwrite {
		line = append([]byte("\r\x1b[K"), line...)
	}
	r.overwrite = !bytes.HasSuffix(line, []byte("\n"))
	if dropped := r.dropped.Swap(0); dropped > 0 && !r.json {
		line = fmt.Appendf(line, "(%d lines left out)\n", dropped)
	}
	if _, err := r.out.Write(line); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (r *devReport) put(line []byte) {
	select {
	case r.queue <- line:
	default:
		r.dropped.Add(1)
	}
}

// event tells of something that happened, to node if that is not empty.
func (r *devReport) event(level zerolog.Level, node, text string) {
	if r.json {
		var line bytes.Buffer
		log := zerolog.New(&line).Hook(timestamp{})
		event := log.WithLevel(level).Str("component", "dev")
		if node != "" {
			event.Str("node", node)
		}
		event.Msg(text)
		r.put(line.Bytes())
		return
	}
	if node != "" {
		text = node + " " + text
	}
	r.put(fmt.Appendf(nil, "%s  %s\n", time.Now().Format(time.TimeOnly), text))
}

// text shows a block to people only.
func (r *devReport) text(block string) {
	if !r.json {
		r.put([]byte(block))
	}
}

// progress shows how far something is: a line that overwrites itself on a
// terminal, a line of its own elsewhere.
func (r *devReport) progress(text string) {
	switch {
	case r.json:
		r.event(zerolog.InfoLevel, "", text)
	case r.terminal:
		r.put([]byte(text))
	default:
		r.put([]byte(text + "\n"))
	}
}

// nodeLine shows a line of a node's log: as JSON all of them, to people warnings,
// errors, and what is no log line, as a panic. Warnings are not repeated all the
// time: Raft has one for every attempt to reach a dead node.
func (r *devReport) nodeLine(node string, line []byte) {
	if r.json {
		if !json.Valid(line) { // a panic: the stream stays JSON
			r.event(zerolog.ErrorLevel, node, string(line))
			return
		}
		r.put(append(bytes.Clone(line), '\n'))
		return
	}
	var entry struct {
		Level   string `json:"level"`
		Message string `json:"message"`
	}
	var shown bytes.Buffer
	fmt.Fprintf(&shown, "%s ", node)
	if err := json.Unmarshal(line, &entry); err != nil {
		fmt.Fprintf(&shown, "%s\n", bytes.Map(visibleRune, line))
		r.put(shown.Bytes())
		return
	}
	level, err := zerolog.ParseLevel(entry.Level)
	if err != nil || level < zerolog.WarnLevel || r.quiet.Load() && level < zerolog.ErrorLevel {
		return
	}
	if level == zerolog.WarnLevel && r.isRecent(node+" "+entry.Message) {
		return
	}
	writer := zerolog.ConsoleWriter{Out: &shown, NoColor: true, TimeFormat: time.TimeOnly}
	if _, err := writer.Write(line); err != nil {
		fmt.Fprintf(&shown, "%s\n", line)
	}
	r.put(shown.Bytes())
}

// visibleRune replaces what a terminal could take for a command.
func visibleRune(r rune) rune {
	if r == '\t' || unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

// isRecent tells whether a warning was shown a short while ago, and if not, takes
// note that it is shown now.
func (r *devReport) isRecent(warning string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, shown := r.recent[warning]; shown && time.Since(last) < repeatAfter {
		return true
	}
	if len(r.recent) >= maxRecentWarnings {
		clear(r.recent)
	}
	r.recent[warning] = time.Now()
	return false
}

// password tells programs a password that was made; people read it in the text. It is no
// part of any log: this is where it is shown.
func (r *devReport) password(user, password string) {
	if !r.json {
		return
	}
	line, err := json.Marshal(map[string]string{"component": "dev", "user": user, "password": password})
	if err != nil {
		panic(err) // Unreachable: there are only strings.
	}
	r.put(append(line, '\n'))
}
