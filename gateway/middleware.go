package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/rs/zerolog"
)

// statusClientGone is what the log and the metrics say when the client went away
// before it had its reply: no such status is ever sent.
const statusClientGone = 499

// ServeHTTP implements http.Handler: it runs one request, turns its error into
// the reply, and logs it.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := g.now()
	x := g.newExchange(w, r)
	header := x.w.Header()
	// Clients of the docker engine's kind look for this to tell a registry.
	header.Set("Docker-Distribution-Api-Version", "registry/2.0")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Request-Id", x.id)
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		// A request with both chunks and a Content-Length can end at two places. The
		// connection must be closed after it (RFC 9112 section 6.1), so that nobody can hide
		// a request behind it from a proxy on the way; net/http takes the length out without
		// a trace, so it is closed after all that have chunks.
		header.Set("Connection", "close")
	}

	err := g.run(r.Context(), x)
	if bodyErr := x.body.failed(); bodyErr != nil && !x.w.started() {
		// Whatever else went wrong, it was for want of the body.
		err = bodyErr
	}
	status, cut := g.conclude(x, err)
	took := g.now().Sub(start)
	g.metrics.observe(x, status, err, took)
	g.audit(x, status, err)
	event := g.logLevel(status, cut)
	event.Str("request_id", x.id).Str("method", logged(r.Method)).Str("path", logged(r.URL.Path)).Int("status", status).
		Str("operation", x.operation.String()).Str("repository", logged(x.repository)).Str("reference", logged(x.reference)).Str("upload", x.upload).
		Uint64("received", x.body.received).Uint64("sent", x.w.written).Dur("took", took).
		Str("redirect", string(x.redirected)).Str("subject", x.who.name()).Str("token", x.who.tokenID).
		Str("remote", r.RemoteAddr).Stringer("client", x.origin.client).Str("agent", logged(r.UserAgent())).Err(clipError(err)).Msg("request")
	if cut {
		// The reply is not complete. Only a broken connection keeps the client from
		// taking it for one.
		panic(http.ErrAbortHandler)
	}
}

// Bounds of what one request can have written into the log: names from outside, and
// errors, which may quote some of them, and of a panic have the stack.
const (
	maxLoggedName  = 512
	maxLoggedError = 8 << 10
)

// logged shortens a text from outside for the log, which escapes what is not printable.
func logged(text string) string {
	if len(text) <= maxLoggedName {
		return text
	}
	return strings.ToValidUTF8(text[:maxLoggedName], "") + "..."
}

// clipError shortens an error for the log.
func clipError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if len(text) <= maxLoggedError {
		return err
	}
	return errors.New(strings.ToValidUTF8(text[:maxLoggedError], "") + "...")
}

// logLevel: one line for each request; a warning when a client was told that the
// cluster could not do it, an error when atoll itself is wrong.
func (g *gateway) logLevel(status int, cut bool) *zerolog.Event {
	switch {
	case status == http.StatusInternalServerError:
		return g.cfg.Logger.Error()
	case status >= http.StatusInternalServerError || cut:
		return g.cfg.Logger.Warn()
	default:
		return g.cfg.Logger.Info()
	}
}

// run dispatches the request and contains a panic of its handler.
func (g *gateway) run(ctx context.Context, x *exchange) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, value, debug.Stack())
		}
	}()
	return g.dispatch(ctx, x)
}

// dispatch finds the handler. Unknown endpoints come before unknown methods, and
// those before malformed names.
func (g *gateway) dispatch(ctx context.Context, x *exchange) error {
	handlers, found := g.handlers[x.operation]
	if !found {
		return errRouteUnknown
	}
	handle, found := handlers[x.r.Method]
	if !found {
		methods := make([]string, 0, len(handlers))
		for method := range handlers {
			methods = append(methods, method)
		}
		slices.Sort(methods)
		x.w.Header().Set("Allow", strings.Join(methods, ", "))
		return errMethod
	}
	x.methodLabel = x.r.Method
	if err := g.checkRate(x); err != nil {
		return err
	}
	if err := x.check(x.r.Method); err != nil {
		return err
	}
	leave, err := g.enterClient(ctx, x)
	if err != nil {
		return err
	}
	defer leave()
	ctx, err = g.authorize(ctx, x)
	if err != nil {
		return err
	}
	if err := g.checkAudit(x); err != nil {
		return err
	}
	return handle(ctx, x)
}

// conclude ends the reply as the handler's error wants it. It returns the status
// for the log, and whether the connection must be cut.
func (g *gateway) conclude(x *exchange, err error) (status int, cut bool) {
	failed := err != nil || !x.w.started()
	// A body that broke off cancels the context as well, but is worth a reply.
	gone := x.w.err != nil || failed && x.r.Context().Err() != nil && x.body.failed() == nil
	if failed && !gone && !x.w.started() {
		g.replyRefusal(x, err)
		failed, gone = false, x.w.err != nil
	}
	if gone {
		return statusClientGone, failed
	}
	return x.w.status, failed
}

// replyRefusal sends the reply to a request that was refused, at once, even if
// the client is still sending its body.
func (g *gateway) replyRefusal(x *exchange, err error) {
	if err == nil {
		err = errors.New("handler wrote no reply")
	}
	// HTTP/2 ends such a stream by itself.
	linger := !x.body.ended() && x.r.ProtoMajor == 1
	if linger {
		// The connection can't be used again, since what is left of the body is in
		// the way. Said in advance, it keeps net/http from reading that before it
		// sends the reply.
		x.w.Header().Set("Connection", "close")
	}
	if encodeErr := x.replyError(err); encodeErr != nil {
		panic(encodeErr) // Unreachable: the errors JSON is made of strings.
	}
	if linger && x.w.control.Flush() == nil {
		x.body.drain()
	}
}

// newRequestID returns an id that is unique enough to find a request in logs.
func newRequestID() string { return rand.Text() }

// discard reads the rest of the body to its end.
func (x *exchange) discard() error {
	_, err := io.Copy(io.Discard, x.body)
	return err
}
