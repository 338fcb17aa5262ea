package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/metadata"
)

// exchange is one request with its reply.
type exchange struct {
	route
	r    *http.Request
	w    *response
	body *body
	// query is what could be parsed of the URL's query; clients and proxies add
	// parameters of their own.
	query url.Values
	// origin is who asks, and by which URL.
	origin origin
	// id names the request in logs and replies.
	id string
	// methodLabel is the method in metrics.
	methodLabel string
	// upload is the id of an upload that the request began, for the log.
	upload string
	// who asks; anonymous where nobody logs in.
	who identity
	// certified is the name in a verified certificate of the client's; empty for none.
	certified string
	// login is the name in Basic credentials, right or wrong, for the log. fresh says
	// that a password was found right, tokenSent that there was a token.
	login            string
	fresh, tokenSent bool
	// outlived says that the token has expired, and is good only for an upload that is recorded.
	outlived bool
	// stale says whether who asks was looked up without a quorum.
	stale *metadata.Stale
	// mounted says that a blob was linked without its bytes, mountedFrom from which
	// repository; empty if it was there already.
	mounted     bool
	mountedFrom string
	// granted is what a token that was given out allows, as scopes.
	granted string
	// begun is when the request came.
	begun time.Time
	// redirected is why a GET of a blob was redirected or not, for the log.
	redirected decision
}

// newExchange takes a request in. Nothing is read yet.
func (g *gateway) newExchange(w http.ResponseWriter, r *http.Request) *exchange {
	control := http.NewResponseController(w)
	query, _ := url.ParseQuery(r.URL.RawQuery)
	certified, ok := clientCertificateName(r)
	if !ok || isTrusted(peerOf(r), g.cfg.TrustedProxies) {
		certified = "" // Or it is the proxy's.
	}
	return &exchange{
		certified: certified,

		route: splitPath(r.URL.Path),
		r:     r,
		w:     &response{ResponseWriter: w, control: control, now: g.now, idle: g.cfg.IdleTimeout},
		body:  newBody(r, control, g.cfg.IdleTimeout, g.now),
		query: query,
		id:    requestID(r),
		begun: g.now(),

		origin: originOf(r, g.cfg.TrustedProxies),
		stale:  &metadata.Stale{},

		methodLabel: "other",
	}
}

// one returns the value of a header or parameter that may be there once. ok is
// false if it is there with several values: a proxy on the way could have looked at
// another one than we would.
func one(values []string) (value string, ok bool) {
	if len(values) == 0 {
		return "", true
	}
	for _, other := range values[1:] {
		if other != values[0] {
			return "", false
		}
	}
	return values[0], true
}

// digestParameter returns the digest that the query names.
func (x *exchange) digestParameter() (string, error) {
	digest, ok := one(x.query["digest"])
	if !ok {
		return "", refuse(errDigestInvalid, "there are several digests", nil)
	}
	return digest, checkDigest(digest)
}

// reply writes a reply without a body.
func (x *exchange) reply(status int) error {
	if status != http.StatusNoContent && status != http.StatusNotModified {
		x.w.Header().Set("Content-Length", "0")
	}
	x.w.WriteHeader(status)
	return nil
}

// replyJSON writes a reply with a value as its body. To a HEAD net/http sends
// the header only.
func (x *exchange) replyJSON(status int, mediaType string, value any) error {
	var content bytes.Buffer
	encoder := json.NewEncoder(&content)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("encode reply: %w", err)
	}
	x.w.Header().Set("Content-Type", mediaType)
	x.w.Header().Set("Content-Length", strconv.Itoa(content.Len()))
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		// A client that is gone is seen in x.w.err.
		_, _ = x.w.Write(content.Bytes())
	}
	return nil
}

// setUpload sets the headers that tell where an upload is and how far it has
// come.
func (x *exchange) setUpload(id string, size uint64) {
	header := x.w.Header()
	header.Set("Location", uploadPath(x.repository, id))
	header.Set("Range", uploadRange(size))
	header.Set("Docker-Upload-UUID", id)
	x.upload = id
}

// created replies that a blob or a manifest is stored and can be read at once.
func (x *exchange) created(location, digest string) error {
	x.w.Header().Set("Location", location)
	x.w.Header().Set("Docker-Content-Digest", digest)
	return x.reply(http.StatusCreated)
}

// matchesETag says whether an If-None-Match header names the entity (RFC 9110
// section 13.1.2).
func matchesETag(header, etag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == etag || candidate == "*" {
			return true
		}
	}
	return false
}

// maxRequestIDBytes is how long a request id from outside may be.
const maxRequestIDBytes = 64

// requestID takes over the id that a balancer gave the request, if it can't do
// harm in a log, or makes one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > maxRequestIDBytes {
		return newRequestID()
	}
	for _, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return newRequestID()
		}
	}
	return id
}
