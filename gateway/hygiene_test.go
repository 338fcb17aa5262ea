package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// exchangeRaw sends bytes and reads the status and body of each of the replies.
func (r *registry) exchangeRaw(text string, replies int) (statuses []int, bodies []string) {
	r.t.Helper()
	conn, reader := r.dial(text)
	defer conn.Close()
	for range replies {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			r.t.Fatalf("after %v: %v", statuses, err)
		}
		content, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			r.t.Fatal(err)
		}
		statuses, bodies = append(statuses, response.StatusCode), append(bodies, string(content))
	}
	return statuses, bodies
}

// TestFraming: how long a body is can be read in one way only, so that nobody can
// hide a request in another one's body.
func TestFraming(t *testing.T) {
	r := newRegistry(t, Config{})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	const (
		patch = "PATCH /v2/a/blobs/uploads/upload-1 HTTP/1.1\r\nHost: a\r\n"
		chunk = "5\r\nhello\r\n0\r\n\r\n"
	)
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"two lengths":         {patch + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", http.StatusBadRequest},
		"a negative length":   {patch + "Content-Length: -5\r\n\r\nhello", http.StatusBadRequest},
		"a signed length":     {patch + "Content-Length: +5\r\n\r\nhello", http.StatusBadRequest},
		"no number":           {patch + "Content-Length: five\r\n\r\nhello", http.StatusBadRequest},
		"an unknown coding":   {patch + "Transfer-Encoding: gzip\r\n\r\n" + chunk, http.StatusNotImplemented},
		"two codings":         {patch + "Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk, http.StatusNotImplemented},
		"two hosts":           {"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", http.StatusBadRequest},
		"no host":             {"GET /v2/ HTTP/1.1\r\n\r\n", http.StatusBadRequest},
		"a malformed header":  {"GET /v2/ HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", http.StatusBadRequest},
		"a space before it":   {"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n", http.StatusBadRequest},
		"an unknown version":  {"GET /v2/ HTTP/3.7\r\nHost: a\r\n\r\n", http.StatusHTTPVersionNotSupported},
		"a broken escape":     {"GET /v2/%zz HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusBadRequest},
		"no path":             {"GET v2 HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusBadRequest},
		"a whole URL":         {"GET http://other.example/v2/ HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusOK},
		"the old protocol":    {"GET /v2/ HTTP/1.0\r\n\r\n", http.StatusOK},
		"all of the server":   {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusNotFound},
		"a proxy's request":   {"CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", http.StatusNotFound},
		"another expectation": {patch + "Content-Length: 5\r\nExpect: 200-maybe\r\n\r\nhello", http.StatusExpectationFailed},
	} {
		t.Run(name, func(t *testing.T) {
			statuses, _ := r.exchangeRaw(test.request, 1)
			if statuses[0] != test.status {
				t.Errorf("got %d, want %d", statuses[0], test.status)
			}
		})
	}
	if upload := r.metadata.upload("upload-1"); upload.Size != 0 {
		t.Errorf("%d bytes were stored", upload.Size)
	}
	// With both a length and chunks, the chunks count (RFC 9112 section 6.3): what
	// comes behind them is no request of this connection.
	statuses, _ := r.exchangeRaw(patch+"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk, 1)
	if statuses[0] != http.StatusAccepted || r.metadata.upload("upload-1").Size != 5 {
		t.Errorf("both: got %v, %d bytes were stored", statuses, r.metadata.upload("upload-1").Size)
	}
}

// TestBodyOfAGet: a body that nobody wants does not become the next request.
func TestBodyOfAGet(t *testing.T) {
	r := newRegistry(t, Config{})
	digest := r.push("a", "hello")
	smuggled := "DELETE /v2/a/blobs/" + digest + " HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, method := range []string{"GET", "DELETE"} {
		request := fmt.Sprintf("%s /v2/a/manifests/latest HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", method, len(smuggled), smuggled)
		statuses, _ := r.exchangeRaw(request, 1)
		if statuses[0] != http.StatusNotFound {
			t.Errorf("%s: got %v", method, statuses)
		}
	}
	request := fmt.Sprintf("GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(smuggled), smuggled)
	statuses, _ := r.exchangeRaw(request+"GET /v2/nothing HTTP/1.1\r\nHost: a\r\n\r\n", 2)
	if statuses[0] != http.StatusOK || statuses[1] != http.StatusNotFound {
		t.Errorf("got %v", statuses)
	}
	r.want(http.StatusOK, http.MethodHead, "/v2/a/blobs/"+digest, nil)
}

// TestExpectedBody: a client that waits for "100 Continue", as curl does, gets it
// once the upload is known to be there.
func TestExpectedBody(t *testing.T) {
	r := newRegistry(t, Config{})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	digest := digestOf(sha256Algorithm, []byte("hello"))
	conn, reader := r.dial("PUT /v2/a/blobs/uploads/upload-1?digest=" + digest + " HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if got := status(t, reader); got != http.StatusContinue {
		t.Fatalf("got %d", got)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if got := status(t, reader); got != http.StatusCreated {
		t.Errorf("got %d", got)
	}
}

func status(t *testing.T, reader *bufio.Reader) int {
	t.Helper()
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// TestHeaderBounds: there is room for what clients send, and not for more.
func TestHeaderBounds(t *testing.T) {
	r := newRegistry(t, Config{})
	for size, want := range map[int]int{64 << 10: http.StatusOK, maxHeaderBytes + 8<<10: http.StatusRequestHeaderFieldsTooLarge} {
		for _, request := range []string{
			"GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + strings.Repeat("x", size) + "\r\n\r\n",
			"GET /v2/?x=" + strings.Repeat("x", size) + " HTTP/1.1\r\nHost: a\r\n\r\n",
		} {
			conn, reader := r.dial("")
			go func() { _, _ = io.WriteString(conn, request) }() // Ends with the connection.
			if got := status(t, reader); got != want {
				t.Errorf("%.10s... of %d bytes: got %d, want %d", request, size, got, want)
			}
			_ = conn.Close()
		}
	}
}

// TestServerTimeouts: transfers may take as long as they take, all else has a
// bound, and idle connections live longer than a balancer keeps its own.
func TestServerTimeouts(t *testing.T) {
	server := NewServer(http.NotFoundHandler(), nil, zerolog.Nop())
	if server.ReadTimeout != 0 || server.WriteTimeout != 0 {
		t.Errorf("timeouts for whole requests: %s, %s", server.ReadTimeout, server.WriteTimeout)
	}
	if server.ReadHeaderTimeout <= 0 || server.IdleTimeout < 120*time.Second {
		t.Errorf("timeouts of headers and idle connections: %s, %s", server.ReadHeaderTimeout, server.IdleTimeout)
	}
}

// TestDateAndLength: every reply has a Date and, unless it has no body by its
// nature, a Content-Length; none is encoded.
func TestDateAndLength(t *testing.T) {
	r := newRegistry(t, Config{})
	digest := r.push("a", "hello")
	for _, line := range []string{
		"GET /v2/", "GET /v2", "GET /v2/_catalog", "GET /v2/a/tags/list", "GET /v2/a/blobs/" + digest, "HEAD /v2/a/blobs/" + digest,
		"GET /v2/a/referrers/" + digest, "POST /v2/a/blobs/uploads/", "GET /v2/a/manifests/none", "HEAD /v2/a/manifests/none",
		"PATCH /nowhere", "DELETE /v2/a/blobs/" + digest,
	} {
		method, path, _ := strings.Cut(line, " ")
		response := r.do(method, path, nil, "Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")
		header := response.Header
		if header.Get("Date") == "" || header.Get("Content-Length") == "" || header.Get("Content-Encoding") != "" || len(response.TransferEncoding) > 0 {
			t.Errorf("%s: header %v, %v", line, header, response.TransferEncoding)
		}
	}
}
