package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// registry is a gateway on real TCP over stores in memory.
type registry struct {
	t        *testing.T
	metadata *memoryMetadata
	blobs    *memoryBlobs
	gateway  *gateway
	server   *httptest.Server
}

func newRegistry(t *testing.T, cfg Config) *registry {
	t.Helper()
	r := &registry{t: t, metadata: newMemoryMetadata(), blobs: newMemoryBlobs()}
	handler := New(cfg, r.metadata, r.blobs)
	r.gateway = handler.(*gateway)
	r.server = startServer(t, handler)
	return r
}

func (r *registry) do(method, path string, body io.Reader, header ...string) *http.Response {
	r.t.Helper()
	response, err := r.try(method, path, body, header...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func (r *registry) try(method, path string, body io.Reader, header ...string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	r.t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, method, r.server.URL+path, body)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	return r.server.Client().Do(request)
}

// want fails unless a request has this status.
func (r *registry) want(status int, method, path string, body io.Reader, header ...string) *http.Response {
	r.t.Helper()
	response := r.do(method, path, body, header...)
	if response.StatusCode != status {
		content, _ := io.ReadAll(response.Body)
		r.t.Fatalf("%s %s: got %d %s, want %d", method, path, response.StatusCode, content, status)
	}
	return response
}

// dial opens a connection and writes text on it.
func (r *registry) dial(text string) (net.Conn, *bufio.Reader) {
	r.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", r.server.Listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		r.t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// refusals are requests with a body that must be refused, whatever the body.
func refusals(r *registry) map[string]int {
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	return map[string]int{
		"PATCH /v2/a/blobs/uploads/none":                                                 http.StatusNotFound,
		"PATCH /v2/A/blobs/uploads/none":                                                 http.StatusBadRequest,
		"PUT /v2/a/blobs/uploads/upload-1?digest=sha256:no":                              http.StatusBadRequest,
		"PUT /v2/a/blobs/uploads/none?digest=" + someDigest:                              http.StatusNotFound,
		"POST /v2/a/blobs/uploads/?digest=no":                                            http.StatusBadRequest,
		"PUT /v2/a/manifests/-bad":                                                       http.StatusBadRequest,
		"PUT /v2/a/tags/list":                                                            http.StatusMethodNotAllowed,
		"PUT /nowhere":                                                                   http.StatusNotFound,
		"PATCH /v2/a/blobs/uploads/upload-1\nContent-Range: 7-4294967296":                http.StatusRequestedRangeNotSatisfiable,
		"PUT /v2/a/blobs/uploads/upload-1?digest=" + someDigest + "\nContent-Range: 7-9": http.StatusRequestedRangeNotSatisfiable,
	}
}

// TestRefusalDoesNotWaitForTheBody: a client that sends slowly, or not at all,
// gets its reply at once.
func TestRefusalDoesNotWaitForTheBody(t *testing.T) {
	r := newRegistry(t, Config{})
	for request, status := range refusals(r) {
		for _, framing := range []string{"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "Content-Length: 1000000000\r\n\r\nhello", "Content-Length: 100\r\n\r\nhello"} {
			line, header, _ := strings.Cut(request, "\n")
			if header != "" {
				header += "\r\n"
			}
			start := time.Now()
			conn, reader := r.dial(line + " HTTP/1.1\r\nHost: a\r\n" + header + framing)
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			_, err = io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil || response.StatusCode != status || !response.Close {
				t.Errorf("%s: got %d, close %v, %v; want %d", line, response.StatusCode, response.Close, err, status)
			}
			if took := time.Since(start); took > drainTime {
				t.Errorf("%s: took %s", line, took)
			}
			_ = conn.Close()
		}
	}
	if upload := r.metadata.upload("upload-1"); upload == nil || upload.Size != 0 {
		t.Errorf("a refused request left its mark: %v", upload)
	}
}

// endless is a body without an end.
type endless struct{ sent atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.sent.Add(int64(len(p)))
	return len(p), nil
}

// TestRefusalReachesABusySender: a client that keeps sending sees the reply, not
// only a broken connection.
func TestRefusalReachesABusySender(t *testing.T) {
	r := newRegistry(t, Config{})
	for request, status := range refusals(r) {
		line, header, _ := strings.Cut(request, "\n")
		method, path, _ := strings.Cut(line, " ")
		var headers []string
		if name, value, found := strings.Cut(header, ": "); found {
			headers = []string{name, value}
			if method == http.MethodPut {
				continue // That one's length does not fit an endless body.
			}
		}
		body := &endless{}
		response, err := r.try(method, path, body, headers...)
		if err != nil {
			t.Errorf("%s: %v after %d bytes", line, err, body.sent.Load())
			continue
		}
		content, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil || response.StatusCode != status || !bytes.Contains(content, []byte(`"errors"`)) {
			t.Errorf("%s: got %d %q %v", line, response.StatusCode, content, err)
		}
	}
}

// TestRefusalOfExpectedBody: a client that waits for "100 Continue" gets the
// refusal instead, and need not send anything.
func TestRefusalOfExpectedBody(t *testing.T) {
	r := newRegistry(t, Config{})
	_, reader := r.dial("PATCH /v2/a/blobs/uploads/none HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("got %d", response.StatusCode)
	}
}

// TestRefusalOverHTTP2: a stream is refused without harm to its connection.
func TestRefusalOverHTTP2(t *testing.T) {
	handler := New(Config{}, newMemoryMetadata(), newMemoryBlobs())
	server := httptest.NewUnstartedServer(nil)
	server.Config = NewServer(handler, nil, zerolog.Nop())
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	r := &registry{t: t, server: server}
	for range 3 {
		response := r.want(http.StatusNotFound, http.MethodPatch, "/v2/a/blobs/uploads/none", &endless{})
		if response.ProtoMajor != 2 {
			t.Errorf("over %s", response.Proto)
		}
	}
	digest := r.push("a", "hello")
	r.want(http.StatusOK, http.MethodGet, "/v2/a/blobs/"+digest, nil)
}

// TestUnwantedBody: a body that nothing asks for does not hold up the reply for
// longer than a client may be silent.
func TestUnwantedBody(t *testing.T) {
	r := newRegistry(t, Config{IdleTimeout: 200 * time.Millisecond})
	for _, line := range []string{"GET /v2/", "POST /v2/a/blobs/uploads/"} {
		_, reader := r.dial(line + " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		_ = response.Body.Close()
		if response.StatusCode >= 300 {
			t.Errorf("%s: got %d", line, response.StatusCode)
		}
	}
}

// TestReadErrorBeforeTheFirstByte is told as an error, without the headers of the
// blob; TestReadErrorInTheMiddle breaks the connection.
func TestReadErrorBeforeTheFirstByte(t *testing.T) {
	r := newRegistry(t, Config{})
	digest := r.push("a", strings.Repeat("x", 100000))
	r.blobs.failReads(blobstore.ErrTooFewShards, 0)
	response := r.want(http.StatusServiceUnavailable, http.MethodGet, "/v2/a/blobs/"+digest, nil)
	for _, name := range []string{"Docker-Content-Digest", "Etag", "Accept-Ranges", "Cache-Control"} {
		if value := response.Header.Get(name); value != "" {
			t.Errorf("%s: %s", name, value)
		}
	}
}

// push stores a blob and returns its digest.
func (r *registry) push(repository, content string) string {
	r.t.Helper()
	digest := digestOf(sha256Algorithm, []byte(content))
	r.want(http.StatusCreated, http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest, strings.NewReader(content))
	return digest
}

func TestReadErrorInTheMiddle(t *testing.T) {
	var log safeBuffer
	r := newRegistry(t, Config{Logger: zerolog.New(&log)})
	digest := r.push("a", strings.Repeat("x", 1000000))
	for _, after := range []int{1, 100, 999999} {
		r.blobs.failReads(blobstore.ErrTooFewShards, after)
		response, err := r.try(http.MethodGet, "/v2/a/blobs/"+digest, nil)
		if err != nil {
			continue // Not even the header came.
		}
		content, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err == nil {
			t.Errorf("%d bytes, then a clean end with status %d", len(content), response.StatusCode)
		}
	}
	if !strings.Contains(log.String(), "too few shards") {
		t.Errorf("the log does not say why: %s", log.String())
	}
}

type safeBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// TestSilentSender: a client that stops sending is told so, and nothing counts.
func TestSilentSender(t *testing.T) {
	r := newRegistry(t, Config{IdleTimeout: 100 * time.Millisecond, ManifestTimeout: 100 * time.Millisecond})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	for _, line := range []string{"PATCH /v2/a/blobs/uploads/upload-1", "PUT /v2/a/blobs/uploads/upload-1?digest=" + someDigest, "PUT /v2/a/manifests/latest"} {
		_, reader := r.dial(line + " HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhello")
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusRequestTimeout {
			t.Errorf("%s: got %d", line, response.StatusCode)
		}
	}
	if upload := r.metadata.upload("upload-1"); upload == nil || upload.Size != 0 {
		t.Errorf("something was stored: %v", upload)
	}
}

// TestSlowSenderIsNotSilent: what takes longer than the idle timeout is fine, as
// long as it moves. A manifest, which waits in memory, has a time of its own.
func TestSlowSenderIsNotSilent(t *testing.T) {
	r := newRegistry(t, Config{IdleTimeout: 400 * time.Millisecond, ManifestTimeout: time.Second})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	// 20 writes, one each 100 ms: far longer than one idle timeout.
	chunk := fmt.Sprintf("%x\r\n%s\r\n", minProgress/2, strings.Repeat("x", minProgress/2))
	trickle := func(request string) int {
		conn, reader := r.dial(request)
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for range 20 {
			<-ticker.C
			if _, err := io.WriteString(conn, chunk); err != nil {
				break
			}
		}
		_, _ = io.WriteString(conn, "0\r\n\r\n")
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("%s: %v", request, err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	const chunked = " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	if status := trickle("PATCH /v2/a/blobs/uploads/upload-1" + chunked); status != http.StatusAccepted {
		t.Errorf("upload: got %d", status)
	}
	if status := trickle("PUT /v2/a/manifests/latest" + chunked); status != http.StatusRequestTimeout {
		t.Errorf("manifest: got %d", status)
	}
	if upload := r.metadata.upload("upload-1"); upload.Size != 10*minProgress {
		t.Errorf("%d bytes were stored", upload.Size)
	}
}

// TestTricklingSender: who sends a byte now and then is as good as silent.
func TestTricklingSender(t *testing.T) {
	for name, start := range map[string]func(*testing.T, http.Handler) *httptest.Server{"HTTP/1.1": startServer, "HTTP/2": startHTTP2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &registry{t: t, metadata: newMemoryMetadata(), blobs: newMemoryBlobs()}
			handler := New(Config{IdleTimeout: 400 * time.Millisecond}, r.metadata, r.blobs)
			r.gateway, r.server = handler.(*gateway), start(t, handler)
			location := r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil).Header.Get("Location")
			reader, writer := io.Pipe()
			done := make(chan struct{})
			go func() { // ends with the request
				defer close(done)
				ticker := time.NewTicker(20 * time.Millisecond)
				defer ticker.Stop()
				for {
					<-ticker.C
					if _, err := writer.Write([]byte{'x'}); err != nil {
						return
					}
				}
			}()
			began := time.Now()
			r.want(http.StatusRequestTimeout, http.MethodPatch, location, reader)
			if took := time.Since(began); took > patience {
				t.Errorf("held for %s", took)
			}
			_ = reader.Close()
			<-done
		})
	}
}

const silentBytes = 24 << 20

// TestSilentReader: a client that stops reading gives its turn back.
func TestSilentReader(t *testing.T) {
	var log safeBuffer
	r := newRegistry(t, Config{IdleTimeout: time.Second, MaxConcurrentPulls: 1, Logger: zerolog.New(&log)})
	digest := r.push("a", strings.Repeat("x", silentBytes)) // More than the sockets hold.
	conn, _ := r.dial("GET /v2/a/blobs/" + digest + " HTTP/1.1\r\nHost: a\r\n\r\n")
	eventually(t, patience, func() bool { return strings.Contains(log.String(), `"status":499`) })
	_ = conn.Close()
	response := r.want(http.StatusOK, http.MethodGet, "/v2/a/blobs/"+digest, nil)
	if n, err := io.Copy(io.Discard, response.Body); err != nil || n != silentBytes {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestBrokenOffUpload: a client that goes away leaves nothing behind, and can go on
// from where it was.
func TestBrokenOffUpload(t *testing.T) {
	var log safeBuffer
	r := newRegistry(t, Config{Logger: zerolog.New(&log)})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	r.want(http.StatusAccepted, http.MethodPatch, "/v2/a/blobs/uploads/upload-1", strings.NewReader("hello "))
	for i, framing := range []string{"Content-Length: 1000\r\n\r\nwor", "Transfer-Encoding: chunked\r\n\r\n3\r\nwor\r\n"} {
		conn, _ := r.dial("PATCH /v2/a/blobs/uploads/upload-1 HTTP/1.1\r\nHost: a\r\n" + framing)
		_ = conn.Close()
		eventually(t, patience, func() bool { return strings.Count(log.String(), "broke off") == i+1 })
	}
	response := r.want(http.StatusNoContent, http.MethodGet, "/v2/a/blobs/uploads/upload-1", nil)
	if got := response.Header.Get("Range"); got != "0-5" {
		t.Errorf("Range: %s", got)
	}
	r.want(http.StatusAccepted, http.MethodPatch, "/v2/a/blobs/uploads/upload-1", strings.NewReader("world"), "Content-Range", "6-10")
	r.want(http.StatusCreated, http.MethodPut, "/v2/a/blobs/uploads/upload-1?digest="+digestOf(sha256Algorithm, []byte("hello world")), nil)
}

// TestRepeatedLastStep: containerd sends a blob in the PUT, and when the
// connection breaks sends all of it again to the same upload.
func TestRepeatedLastStep(t *testing.T) {
	var log safeBuffer
	r := newRegistry(t, Config{Logger: zerolog.New(&log)})
	r.blobs.extentBytes = 10
	content := strings.Repeat("0123456789abcdef", 10)
	digest := digestOf(sha256Algorithm, []byte(content))
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	put := "PUT /v2/a/blobs/uploads/upload-1?digest=" + digest + " HTTP/1.1\r\nHost: a\r\n"
	conn, _ := r.dial(put + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(content), content[:100]))
	eventually(t, patience, func() bool { return r.metadata.count("ExtendUpload") > 0 })
	_ = conn.Close()
	eventually(t, patience, func() bool { return strings.Contains(log.String(), "broke off") })
	for range 2 { // And once more, for a reply that was lost.
		r.want(http.StatusCreated, http.MethodPut, "/v2/a/blobs/uploads/upload-1?digest="+digest, strings.NewReader(content))
	}
	response := r.want(http.StatusOK, http.MethodGet, "/v2/a/blobs/"+digest, nil)
	if got, err := io.ReadAll(response.Body); err != nil || string(got) != content {
		t.Errorf("got %q, %v", got, err)
	}
	if upload := r.metadata.upload("upload-2"); upload != nil {
		t.Errorf("the upload that broke off is still there: %v", upload)
	}
}

// TestTwoWriters: of two clients that extend one upload at once, one wins; the
// other is told how far it has come.
func TestTwoWriters(t *testing.T) {
	r := newRegistry(t, Config{})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	readers := [2]*gate{newGate("aaaa"), newGate("bb")}
	statuses := make(chan *http.Response, 2)
	for _, body := range readers {
		go func() {
			response, err := r.try(http.MethodPatch, "/v2/a/blobs/uploads/upload-1", body)
			if err != nil {
				t.Error(err)
				response = &http.Response{Body: http.NoBody}
			}
			_ = response.Body.Close()
			statuses <- response
		}()
	}
	// Both have seen an empty upload before either of them ends.
	eventually(t, patience, func() bool { return r.metadata.count("Upload") == 2 })
	close(readers[0].open)
	if first := <-statuses; first.StatusCode != http.StatusAccepted {
		t.Errorf("first: %d", first.StatusCode)
	}
	close(readers[1].open)
	second := <-statuses
	if second.StatusCode != http.StatusRequestedRangeNotSatisfiable || second.Header.Get("Range") != "0-3" || second.Header.Get("Location") != "/v2/a/blobs/uploads/upload-1" {
		t.Errorf("second: %d %v", second.StatusCode, second.Header)
	}
}

// gate is a body that ends when it is opened.
type gate struct {
	open    chan struct{}
	content io.Reader
}

func newGate(content string) *gate {
	return &gate{open: make(chan struct{}), content: strings.NewReader(content)}
}

func (g *gate) Read(p []byte) (int, error) {
	n, err := g.content.Read(p)
	if n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	<-g.open
	return 0, io.EOF
}

// pausingBlobs lets time pass between two reads of a body, like an append that waits
// for memory or for nodes.
type pausingBlobs struct {
	*memoryBlobs
	pause time.Duration
}

func (p *pausingBlobs) Append(ctx context.Context, from blobstore.Progress, r io.Reader, record func(context.Context, blobstore.Recorded) error) (blobstore.Progress, []*proto.Extent, uint64, error) {
	first := make([]byte, 1000)
	if _, err := io.ReadFull(r, first); err != nil {
		return blobstore.Progress{}, nil, 0, err
	}
	<-time.After(p.pause)
	return p.memoryBlobs.Append(ctx, from, io.MultiReader(bytes.NewReader(first), r), record)
}

// TestSlowServerIsNotTheClientsFault: the time that the server takes does not count as
// the client's silence.
func TestSlowServerIsNotTheClientsFault(t *testing.T) {
	for name, start := range map[string]func(*testing.T, http.Handler) *httptest.Server{"HTTP/1.1": startServer, "HTTP/2": startHTTP2} {
		t.Run(name, func(t *testing.T) {
			r := &registry{t: t, metadata: newMemoryMetadata(), blobs: newMemoryBlobs()}
			t.Parallel()
			const idle = time.Second
			handler := New(Config{IdleTimeout: idle}, r.metadata, &pausingBlobs{r.blobs, 2 * idle})
			r.gateway, r.server = handler.(*gateway), start(t, handler)
			location := r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil).Header.Get("Location")
			// More than any window holds, so that the client is still sending.
			r.want(http.StatusAccepted, http.MethodPatch, location, bytes.NewReader(make([]byte, 30_000_000)))
		})
	}
}
