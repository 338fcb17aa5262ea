package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// AuditStdout is the name of the audit log that is the process's standard output.
const AuditStdout = "-"

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

	mu   sync.Mutex // guards what follows
	out  io.Writer
	file *os.File // nil for standard output
	// failure is why the last line could not be written; nil if it could.
	failure error
}

// OpenAuditLog opens the file, and makes it if it is not there, for its owner only. The
// node's name goes into each line.
func OpenAuditLog(path, node string, logger zerolog.Logger) (*AuditLog, error) {
	l := &AuditLog{path: path, node: node, log: logger}
	if path == AuditStdout {
		l.out = os.Stdout
		return l, nil
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.write(line); err != nil {
		l.log.Error().Err(err).RawJSON("audit", line).Msg("audit log can't be written: writes are refused until it can")
		return err
	}
	return nil
}

// write hands a line to the operating system. The caller holds the lock.
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
	l.mu.Lock()
	defer l.mu.Unlock()
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

// Close closes the file.
func (l *AuditLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
