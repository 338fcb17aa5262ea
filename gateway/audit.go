package gateway

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/atollregistry/atoll/metadata"
)

// Events and results of the audit log.
const (
	eventPush   = "push"
	eventDelete = "delete"
	eventUpload = "upload"
	eventMount  = "mount"
	eventPull   = "pull"
	eventLogin  = "login"
	eventDenied = "denied"

	resultOK     = "ok"
	resultDenied = "denied"
	resultFailed = "failed"
	// resultUnknown is that of a write which may have been carried out.
	resultUnknown = "unknown"
)

// loginSignature is how a redirected pull shows that it may.
const loginSignature = "signature"

// checkAudit refuses a request that has to be in the audit log while lines can't be
// written: what changes something or gives out a token. Reading goes on.
func (g *gateway) checkAudit(x *exchange) error {
	if g.cfg.Audit == nil || isReading(x.r.Method) && x.operation != opToken {
		return nil
	}
	if err := g.cfg.Audit.Ready(g.now()); err != nil {
		return fmt.Errorf("%w: %w", errAudit, err)
	}
	return nil
}

// audit writes down what the request did. There is nothing to say about requests
// that read, unless the operator wants that, and those that lack credentials: most
// clients begin with such a one.
func (g *gateway) audit(x *exchange, status int, err error) {
	if g.cfg.Audit == nil {
		return
	}
	event := x.auditEvent(status, err, g.cfg.AuditPulls)
	if event == "" {
		return
	}
	record := AuditRecord{
		Time: x.begun, Event: event, Result: auditResult(status, err), Subject: x.who.name(), Method: string(x.who.method), Token: x.who.tokenID,
		Repository: cut(x.repository), Upload: x.upload, Request: x.r.Method, Status: status, RequestID: x.id,
	}
	if x.origin.client.IsValid() {
		record.Client = x.origin.client.String()
	}
	if err != nil {
		row := findReply(err)
		record.Code, record.Reason = row.code, row.message
	}
	if !x.who.presented && record.Result != resultOK && (x.login != "" || x.tokenSent) {
		record.Subject, record.Method = "", ""
		record.Login = cut(x.login)
	}
	x.describe(&record)
	if g.cfg.Audit.Write(record) != nil {
		g.metrics.auditFailed.Inc()
	}
}

// auditEvent says what the request was; empty for what does not belong in the log.
func (x *exchange) auditEvent(status int, err error, pulls bool) string {
	known := x.who.presented && x.who.method != loginNone
	switch {
	case x.operation == opToken && (known || status != http.StatusOK):
		return eventLogin
	case x.login != "" && !x.who.presented && (status == http.StatusUnauthorized || status == http.StatusTooManyRequests):
		return eventLogin
	case x.operation == opToken || x.operation == opUnknown || status == http.StatusMethodNotAllowed:
		return ""
	case status == http.StatusUnauthorized && (!x.tokenSent || errors.Is(err, errTokenExpired) || errors.Is(err, errInsufficientScope)):
		return ""
	case status == http.StatusUnauthorized || isReading(x.r.Method) && status == http.StatusForbidden:
		return eventDenied
	}
	switch {
	case !isReading(x.r.Method):
		return x.writeEvent()
	case x.fresh:
		return eventLogin
	case pulls && (x.operation == opManifest || x.operation == opBlob && x.r.Method == http.MethodGet):
		return eventPull
	}
	return ""
}

// writeEvent says what a request was that changes something.
func (x *exchange) writeEvent() string {
	switch {
	case x.operation == opUpload && x.r.Method == http.MethodPut, x.operation == opManifest && x.r.Method == http.MethodPut:
		return eventPush
	case x.mounted:
		return eventMount
	case x.operation == opUploads && x.query.Get("digest") != "":
		return eventPush
	case x.operation == opBlob || x.operation == opManifest:
		return eventDelete
	default:
		return eventUpload
	}
}

// describe adds to a record what exactly the request was about.
func (x *exchange) describe(record *AuditRecord) {
	header := x.w.Header()
	record.Digest = header.Get("Docker-Content-Digest")
	switch x.operation {
	case opManifest:
		record.Tags = header.Values("OCI-Tag")
		if !x.byDigest() {
			record.Tags = []string{cut(x.reference)}
		} else if record.Digest == "" {
			record.Digest = cut(x.reference)
		}
	case opBlob, opReferrers:
		record.Digest = cut(x.reference)
		if isReading(x.r.Method) && isSigned(x.query) {
			record.Subject, record.Method = "", loginSignature
		}
	case opUpload:
		record.Upload = cut(x.reference)
	case opUploads:
		record.From = x.mountedFrom // Not what the client says.
	case opToken:
		record.Scope = x.granted
	default:
	}
	if digest := x.query.Get("digest"); record.Digest == "" && checkDigest(digest) == nil {
		record.Digest = digest
	}
}

// maxAuditBytes bounds what a client has named, which may be no name at all.
const maxAuditBytes = 255

func cut(text string) string { return text[:min(len(text), maxAuditBytes)] }

// auditResult says what came of a request. A client that goes away gets no reply, and
// may do so on purpose: whether its request was carried out, the error alone says.
func auditResult(status int, err error) string {
	switch {
	case errors.Is(err, metadata.ErrOutcomeUnknown):
		return resultUnknown
	case err == nil && status == statusClientGone, status < http.StatusBadRequest:
		return resultOK
	case status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusTooManyRequests:
		return resultDenied
	default:
		return resultFailed
	}
}
