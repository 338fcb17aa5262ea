package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/atollregistry/atoll/gateway"
)

// auditAdmin writes down what an operator has changed of who may do what, or tried to:
// the command, what it was about, how that was changed, by whom, and how it ended. What
// is passed has no secret in it.
func (a *admin) auditAdmin(r *http.Request, event, object, change string, err error) {
	operator := operatorOf(r.Context())
	a.log.Info().Err(err).Str("event", event).Str("object", object).Str("change", change).
		Str("operator", operator).Bool("done", err == nil).Msg("operator's change of who may do what")
	if a.audit == nil {
		return
	}
	record := gateway.AuditRecord{
		Time: time.Now(), Event: event, Result: "ok", Subject: "operator", Method: "operator", Object: object, Change: change, Client: operator,
	}
	if err != nil {
		record.Result, record.Reason = "failed", err.Error()
	}
	// If this fails, the log says so, and the next change is refused.
	_ = a.audit.Write(record)
}

// checkAudit refuses a change while it could not be written down, as the registry does
// with pushes. If it does, it answers and returns false.
func (a *admin) checkAudit(w http.ResponseWriter) bool {
	if a.audit == nil {
		return true
	}
	if err := a.audit.Ready(time.Now()); err != nil {
		answerAdmin(w, nil, refusal(fmt.Sprintf("nothing is changed while the audit log can't be written: %v", err)))
		return false
	}
	return true
}

type operatorKey struct{}

// withOperator is the ConnContext of the operator's socket: it keeps who is at the
// other end.
func withOperator(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, operatorKey{}, peerOf(conn))
}

// operatorOf returns who sent a request over the operator's socket, such as "uid 0".
func operatorOf(ctx context.Context) string {
	who, known := ctx.Value(operatorKey{}).(string)
	if !known || who == "" {
		return "unknown"
	}
	return who
}
