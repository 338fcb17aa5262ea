package gateway

import (
	"crypto/tls"
	"log" //nolint:depguard // http.Server takes no other logger; errorLog passes everything on.
	"net/http"
	"time"

	"github.com/rs/zerolog"
)

// What the HTTP server around the handler bounds.
const (
	// headerTimeout is how long a client may take to send a request's header.
	headerTimeout = 30 * time.Second
	// idleTimeout is how long a connection may wait for its next request. Longer
	// than balancers keep theirs (60 s in nginx and the large clouds' ones), so that
	// it is the balancer that closes, and no request meets a closing connection.
	idleTimeout = 150 * time.Second
	// maxHeaderBytes has room for 1024 ranges, about 25 KB, and long tokens.
	maxHeaderBytes = 128 << 10
)

// NewServer returns an HTTP server for the handler that New made. It starts
// nothing. With a TLS configuration, which ServeTLS needs, it answers plain HTTP
// on its port with a 400 that says so. There is no timeout for whole requests: the handler bounds how long
// a client may be silent, and a layer of any size takes as long as it takes.
func NewServer(handler http.Handler, config *tls.Config, logger zerolog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		TLSConfig:         config,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// So that the handler answers "OPTIONS *" like everything else.
		DisableGeneralOptionsHandler: true,

		ErrorLog: log.New(errorLog{logger}, "", 0),
	}
}

// errorLog passes on what net/http has to say about broken connections.
type errorLog struct{ log zerolog.Logger }

// Write implements io.Writer.
func (l errorLog) Write(p []byte) (int, error) {
	l.log.Debug().Str("text", string(p)).Msg("http server")
	return len(p), nil
}
