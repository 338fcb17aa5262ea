package registry

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/atollregistry/atoll/jepsen/history"
)

func newClient() *Client { return New((&net.Dialer{}).DialContext) }

func TestDo(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Length", r.Header.Get("Content-Length"))
		w.Header().Set("X-Header", r.Header.Get("X-Given"))
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write(append([]byte(r.Method+" "), content...))
	}))
	t.Cleanup(server.Close)
	for _, test := range []struct {
		method string
		body   []byte
		want   string
	}{
		{http.MethodGet, nil, "GET "},
		{http.MethodPut, []byte("content"), "PUT content"},
		{http.MethodPost, []byte{}, "POST "},
	} {
		reply, err := newClient().Do(t.Context(), test.method, server.URL, test.body, "X-Given", "yes")
		if err != nil {
			t.Fatal(err)
		}
		if reply.Status != http.StatusAccepted || string(reply.Body) != test.want || reply.Header.Get("X-Header") != "yes" {
			t.Errorf("%s: %d %q %v", test.method, reply.Status, reply.Body, reply.Header)
		}
	}
	reply, err := newClient().Do(t.Context(), http.MethodGet, server.URL+"/moved", nil)
	if err != nil || reply.Status != http.StatusTemporaryRedirect {
		t.Errorf("a redirect is followed: %v, %v", reply, err)
	}
}

// A reply that breaks off is told from one that is whole, and has what came.
func TestCutOff(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("a part"))
	}))
	t.Cleanup(server.Close)
	reply, err := newClient().Do(t.Context(), http.MethodGet, server.URL, nil)
	if !errors.Is(err, ErrCutOff) || reply == nil || string(reply.Body) != "a part" {
		t.Errorf("%v, %v", reply, err)
	}
	if outcome := OutcomeOfWrite(reply, err); outcome != history.Unknown {
		t.Errorf("a write with a reply that broke off is %s", outcome)
	}
}

// serveOnce answers one request on each connection, and closes the connection when the second comes.
func serveOnce(t *testing.T, requests *atomic.Int64) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for answer := true; ; answer = false {
					request, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, request.Body)
					requests.Add(1)
					if !answer {
						return
					}
					_, _ = io.WriteString(conn, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// What may have been done is never asked for again, also when a connection that was kept breaks.
func TestNothingIsSentTwice(t *testing.T) {
	for _, test := range []struct {
		method string
		body   []byte
	}{
		{http.MethodPut, []byte("content")}, {http.MethodPatch, []byte("content")}, {http.MethodPost, []byte{}}, {http.MethodDelete, nil},
	} {
		var requests atomic.Int64
		url, client := serveOnce(t, &requests), newClient()
		if _, err := client.Do(t.Context(), test.method, url, test.body); err != nil {
			t.Fatal(err)
		}
		_, err := client.Do(t.Context(), test.method, url, test.body)
		if err == nil || NotSent(err) {
			t.Errorf("%s: the connection broke after it was sent, and the error is %v", test.method, err)
		}
		if outcome := OutcomeOfWrite(nil, err); outcome != history.Unknown {
			t.Errorf("%s is %s", test.method, outcome)
		}
		if requests.Load() != 2 {
			t.Errorf("%s was sent %d times", test.method, requests.Load()-1)
		}
	}
}

func TestNotSent(t *testing.T) {
	_, err := newClient().Do(t.Context(), http.MethodPut, "http://127.0.0.1:1", []byte("content"))
	if !NotSent(err) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens, and the error is %v", err)
	}
	if outcome := OutcomeOfWrite(nil, err); outcome != history.Fail {
		t.Errorf("what was not sent is %s", outcome)
	}
}

func TestOutcomeOfWrite(t *testing.T) {
	for status, want := range map[int]history.Outcome{
		200: history.OK, 201: history.OK, 202: history.OK, 204: history.OK,
		400: history.Fail, 404: history.Fail, 412: history.Fail, 416: history.Fail, 429: history.Fail,
		408: history.Unknown, 500: history.Unknown, 502: history.Unknown, 503: history.Unknown, 504: history.Unknown,
	} {
		if got := OutcomeOfWrite(&Reply{Status: status}, nil); got != want {
			t.Errorf("%d is %s, not %s", status, got, want)
		}
	}
}

func TestManifest(t *testing.T) {
	config := Describe(ConfigType, []byte("{}"))
	if config.Digest != "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" || config.Size != 2 {
		t.Errorf("%+v", config)
	}
	one, two := Manifest(config, nil, "one"), Manifest(config, nil, "two")
	if Digest(one) == Digest(two) || Digest(one) != Digest(Manifest(config, nil, "one")) {
		t.Error("a manifest's digest goes by its note")
	}
}
