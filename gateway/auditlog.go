package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// AuditStdout is the name of the audit log that is the process's standard output.
const AuditStdout = "-"

// auditPatience is how long a line may take to be handed over. A disk that takes longer hangs, and
// so do pipes that nobody reads.
const auditPatience = 5 * time.Second

var errAuditHangs = errors.New("audit log hangs: its disk does not answer")

// AuditRecord is one line of the audit log: who did what, and what came of it. It has
// no secret in it.
type AuditRecord struct {
	// Time is when the request came.
	Time time.Time `json:"time"`
	// Event is "push", "delete", "upload", "mount", "pull", "login", "denied", or what the
	// operator did, such as "user add".
	Event string `json:"event"`
	// Result is "ok", "denied" for want of rights or credentials, "failed", or "unknown"
	// for what may have been done, or be done yet.
	Result string `json:"result"`
	// Subject is who, as a policy names it, or "operator". Of a login that was refused it
	// is empty.
	Subject string `json:"subject,omitempty"`
	// Login is the name that was tried in a login that was refused.
	Login string `json:"login,omitempty"`
	// Method is how the subject has logged in: password, robot, htpasswd, oidc,
	// certificate, operator, anonymous, or signature for a redirected pull.
	Method string `json:"method,omitempty"`
	// Token is the id of the token that came with the request, or was given out.
	Token string `json:"token,omitempty"`
	// Repository, Tags, Digest, From and Upload are what it was about. From is where a
	// blob was mounted from.
	Repository string   `json:"repository,omitempty"`
	Tags       []string `json:"tags,omitempty"`
	Digest     string   `json:"digest,omitempty"`
	From       string   `json:"from,omitempty"`
	Upload     string   `json:"upload,omitempty"`
	// Scope is what a token allows.
	Scope string `json:"scope,omitempty"`
	// Object and Change are what the operator changed, and how.
	Object string `json:"object,omitempty"`
	Change string `json:"change,omitempty"`
	// Request is the HTTP method, Status what it was answered, Code and Reason what was
	// wrong.
	Request string `json:"request,omitempty"`
	Status  int    `json:"status,omitempty"`
	Code    string `json:"code,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// Client is the address of the client, RequestID names the request in other logs.
	Client    string `json:"client,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Node is the name of the node.
	Node string `json:"node,omitempty"`
}

// AuditLog is a file with one JSON object a line. Lines are handed to the operating
// system before the reply is over, not to the disk: a power failure can take the last
// ones. A file that was moved away or deleted, as logrotate does, is made anew.
type AuditLog struct {
	path string
	node string
	log  zerolog.Logger

	// patience is auditPatience, but in tests.
	patience time.Duration
	// hangs says that a line has been under way for longer than that.
	hangs atomic.Bool
	// turn has room for one: who is in it may use what follows. Unlike a lock it can be waited for
	// for a time.
	turn chan struct{}
	out  io.Writer
	file *os.File // nil for standard output
	// failure is why the last line could not be written; nil if it could.
	failure error
}

// OpenAuditLog opens the file, and makes it if it is not there, for its owner only. The
// node's name goes into each line.
func OpenAuditLog(path, node string, logger zerolog.Logger) (*AuditLog, error) {
	l := newAuditLog(path, node, logger, os.Stdout)
	if path == AuditStdout {
		return l, nil
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func newAuditLog(path, node string, logger zerolog.Logger, out io.Writer) *AuditLog {
	return &AuditLog{path: path, node: node, log: logger, patience: auditPatience, turn: make(chan struct{}, 1), out: out}
}

// inTurn does something with the file, while nobody else does. It fails when that takes
// too long, and at once while it still does: one goroutine waits for a disk that
// hangs, and no request does.
func (l *AuditLog) inTurn(do func() error) error {
	if l.hangs.Load() {
		return errAuditHangs
	}
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case l.turn <- struct{}{}:
	case <-timer.C:
		return errAuditHangs
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-l.turn }()
		done <- do()
		l.hangs.Store(false)
	}()
	select {
	case err := <-done:
		return err
	case <-timer.C:
	}
	l.hangs.Store(true)
	select {
	case err := <-done: // It came to its end right now, perhaps before it was said that it hangs.
		l.hangs.Store(false)
		return err
	default:
		return errAuditHangs
	}
}

func (l *AuditLog) open() error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close() // Every line was handed over before.
	}
	l.file, l.out = file, file
	return nil
}

// Write writes a line. If that fails, the line goes into the node's own log, and
// Ready fails until lines can be written again.
func (l *AuditLog) Write(record AuditRecord) error {
	record.Node = l.node
	line, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encode audit record: %w", err)
	}
	line = VisibleJSON(line)
	if err := l.inTurn(func() error { return l.write(line) }); err != nil {
		l.log.Error().Err(err).RawJSON("audit", line).Msg("audit log can't be written: writes are refused until it can")
		return err
	}
	return nil
}

// write hands a line to the operating system. The caller is in turn.
func (l *AuditLog) write(line []byte) (err error) {
	defer func() { l.failure = err }()
	if l.file != nil {
		if err := l.follow(); err != nil {
			return err
		}
	}
	if l.failure != nil {
		line = append([]byte{'\n'}, line...) // The last one may have been cut.
	}
	if _, err := l.out.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write audit log: %w", err)
	}
	return nil
}

// follow opens the file anew if its name stands for another one, or none, by now.
func (l *AuditLog) follow() error {
	named, err := os.Stat(l.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for audit log: %w", err)
	}
	opened, openedErr := l.file.Stat()
	if err == nil && openedErr == nil && os.SameFile(named, opened) {
		return nil
	}
	return l.open()
}

// Ready fails while lines can't be written. It tries: a line says that it goes on.
func (l *AuditLog) Ready(now time.Time) error {
	return l.inTurn(func() error { return l.ready(now) })
}

func (l *AuditLog) ready(now time.Time) error {
	if l.failure == nil {
		return nil
	}
	line, err := json.Marshal(AuditRecord{Time: now, Event: "audit log", Result: "ok", Reason: "it can be written again", Node: l.node})
	if err != nil {
		return fmt.Errorf("encode audit record: %w", err)
	}
	if err := l.write(line); err != nil {
		return err
	}
	l.log.Info().Msg("audit log can be written again")
	return nil
}

// Close closes the file. It fails if that, or a line, takes too long.
func (l *AuditLog) Close() error {
	return l.inTurn(func() error {
		if l.file == nil {
			return nil
		}
		return l.file.Close()
	})
}
