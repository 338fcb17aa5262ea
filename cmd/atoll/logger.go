package main

import (
	"fmt"
	"io"
	"slices"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/node"
)

// logTimeFormat is RFC 3339 with milliseconds: enough to put the lines of
// several nodes in order.
const logTimeFormat = "2006-01-02T15:04:05.000Z07:00"

// newLogger makes the one logger of the process. An unknown level counts as info.
func newLogger(cfg node.LogConfig, w io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil || level == zerolog.NoLevel {
		level = zerolog.InfoLevel
	}
	if cfg.Format == "console" {
		// It quotes what is not plain text.
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	} else {
		w = visibleJSON{w}
	}
	return zerolog.New(zerolog.SyncWriter(w)).Level(level).Hook(timestamp{})
}

// visibleJSON escapes in a line of JSON what a terminal could take for a command or
// would not show: characters beyond ASCII that are not printable, as the control
// characters from U+0080 on, or those that turn the direction of writing. JSON has
// them in strings only, and zerolog has escaped those of ASCII. What the text means stays
// the same.
type visibleJSON struct{ w io.Writer }

// Write implements io.Writer for one line.
func (v visibleJSON) Write(line []byte) (int, error) {
	if !slices.ContainsFunc(line, func(b byte) bool { return b >= utf8.RuneSelf }) {
		return v.w.Write(line)
	}
	visible := make([]byte, 0, len(line)+len(line)/4)
	for _, r := range string(line) {
		switch {
		case r < utf8.RuneSelf || unicode.IsPrint(r):
			visible = utf8.AppendRune(visible, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			visible = fmt.Appendf(visible, `\u%04x\u%04x`, high, low)
		default:
			visible = fmt.Appendf(visible, `\u%04x`, r)
		}
	}
	if _, err := v.w.Write(visible); err != nil {
		return 0, err
	}
	return len(line), nil
}

// timestamp puts the time into every line. zerolog's own one takes its format
// from a global variable.
type timestamp struct{}

// Run implements zerolog.Hook.
func (timestamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(logTimeFormat))
}
