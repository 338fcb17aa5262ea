package consensus

import (
	"fmt"
	"io"
	"log"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/rs/zerolog"
)

// While a node is away the library repeats itself several times a second. The
// first lines of each period say it all.
const (
	raftLogBurst  = 20
	raftLogPeriod = 10 * time.Second
)

// raftLogger is the one place where the Raft library's log meets zerolog. Levels
// go one down: what the library calls an error (a peer that is away) is a
// warning here, since a real error ends the node; and its news is for debugging.
type raftLogger struct {
	log     zerolog.Logger
	name    string
	implied []any
}

var _ hclog.Logger = (*raftLogger)(nil)

func newRaftLogger(log zerolog.Logger) *raftLogger {
	limit := &zerolog.BurstSampler{Burst: raftLogBurst, Period: raftLogPeriod}
	return &raftLogger{log: log.Sample(&zerolog.LevelSampler{WarnSampler: limit}), name: "raft"}
}

// Log implements hclog.Logger.
func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	event := l.log.WithLevel(raftLevel(level))
	if !event.Enabled() {
		return
	}
	event = fields(fields(event.Str("source", l.name), l.implied), args)
	event.Msg(msg)
}

// fields adds alternating keys and values.
func fields(event *zerolog.Event, args []any) *zerolog.Event {
	for i := 0; i+1 < len(args); i += 2 {
		key, ok := args[i].(string)
		if !ok {
			key = fmt.Sprint(args[i])
		}
		switch value := args[i+1].(type) {
		case error:
			event = event.AnErr(key, value)
		case hclog.Format:
			event = event.Str(key, fmt.Sprintf(value[0].(string), value[1:]...))
		case fmt.Stringer:
			event = event.Stringer(key, value)
		default:
			event = event.Interface(key, value)
		}
	}
	return event
}

func raftLevel(level hclog.Level) zerolog.Level {
	switch level {
	case hclog.Error, hclog.Warn:
		return zerolog.WarnLevel
	case hclog.Info:
		return zerolog.DebugLevel
	default:
		return zerolog.TraceLevel
	}
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) enabled(level zerolog.Level) bool {
	return l.log.GetLevel() <= level && zerolog.GlobalLevel() <= level
}

func (l *raftLogger) IsTrace() bool { return l.enabled(zerolog.TraceLevel) }
func (l *raftLogger) IsDebug() bool { return l.enabled(zerolog.TraceLevel) }
func (l *raftLogger) IsInfo() bool  { return l.enabled(zerolog.DebugLevel) }
func (l *raftLogger) IsWarn() bool  { return l.enabled(zerolog.WarnLevel) }
func (l *raftLogger) IsError() bool { return l.enabled(zerolog.WarnLevel) }

func (l *raftLogger) ImpliedArgs() []any { return l.implied }
func (l *raftLogger) Name() string       { return l.name }

// With implements hclog.Logger.
func (l *raftLogger) With(args ...any) hclog.Logger {
	child := *l
	child.implied = append(append([]any(nil), l.implied...), args...)
	return &child
}

// Named implements hclog.Logger.
func (l *raftLogger) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }

// ResetNamed implements hclog.Logger.
func (l *raftLogger) ResetNamed(name string) hclog.Logger {
	child := *l
	child.name = name
	return &child
}

// SetLevel does nothing: the level is zerolog's.
func (l *raftLogger) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (l *raftLogger) GetLevel() hclog.Level { return hclog.NoLevel }

// StandardLogger implements hclog.Logger. The libraries in use don't call it.
func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.log, "", 0)
}

// StandardWriter implements hclog.Logger. The libraries in use don't call it.
func (l *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return l.log }
