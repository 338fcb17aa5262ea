package main

import (
	"io"
	"time"

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
		w = node.VisibleLog(w)
	}
	return zerolog.New(zerolog.SyncWriter(w)).Level(level).Hook(timestamp{})
}

// timestamp puts the time into every line. zerolog's own one takes its format
// from a global variable.
type timestamp struct{}

// Run implements zerolog.Hook.
func (timestamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(logTimeFormat))
}
