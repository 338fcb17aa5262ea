package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Attacks by frames of HTTP/2. The protocol is the standard library's; what is shown is
// that it is used such that its bounds hold.

// rawHTTP2 is a client that sends what frames it likes.
type rawHTTP2 struct {
	*http2.Framer
	t      *testing.T
	conn   net.Conn
	header bytes.Buffer
	coder  *hpack.Encoder
	reader *hpack.Decoder
}

// dialHTTP2 connects by TLS and shakes hands.
func dialHTTP2(t *testing.T, server *httptest.Server) *rawHTTP2 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	conn, err := dialer.DialContext(ctx, "tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	c := &rawHTTP2{Framer: http2.NewFramer(conn, conn), t: t, conn: conn}
	c.coder, c.reader = hpack.NewEncoder(&c.header), hpack.NewDecoder(4096, nil)
	c.must(func() error { _, err := io.WriteString(conn, http2.ClientPreface); return err }())
	c.must(c.WriteSettings())
	return c
}

func (c *rawHTTP2) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// block encodes a header, as NAME, VALUE, ...
func (c *rawHTTP2) block(fields ...string) []byte {
	c.header.Reset()
	for i := 0; i < len(fields); i += 2 {
		c.must(c.coder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return bytes.Clone(c.header.Bytes())
}

func (c *rawHTTP2) request(stream uint32, end bool, fields ...string) {
	c.t.Helper()
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.block(fields...), EndStream: end, EndHeaders: true}))
}

// outcome reads until a stream is answered or refused, or the connection ends. It
// returns the status, or 0 with what the server says instead.
func (c *rawHTTP2) outcome(stream uint32) (status string, code http2.ErrCode) {
	c.t.Helper()
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			return "", http2.ErrCodeConnect
		}
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			fields, err := c.reader.DecodeFull(frame.HeaderBlockFragment())
			if err != nil || len(fields) == 0 {
				c.t.Fatal(err)
			}
			if frame.StreamID != stream {
				continue
			}
			return fields[0].Value, http2.ErrCodeNo
		case *http2.RSTStreamFrame:
			if frame.StreamID == stream {
				return "", frame.ErrCode
			}
		case *http2.GoAwayFrame:
			if frame.ErrCode != http2.ErrCodeNo {
				return "", frame.ErrCode
			}
		}
	}
}

// wantServed fails unless the server still serves others.
func wantServed(t *testing.T, server *httptest.Server) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.Client().Do(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("others are not served any more: %v, %v", response, err)
	}
	_ = response.Body.Close()
}

// TestRapidReset: requests that are taken back as fast as they are made (CVE-2023-44487)
// keep only a bounded number of handlers busy.
func TestRapidReset(t *testing.T) {
	const allowed = 250 // net/http's streams of one connection
	var running, most, all atomic.Int64
	release := make(chan struct{})
	handler := New(Config{}, newMemoryMetadata(), newMemoryBlobs())
	server := startHTTP2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			handler.ServeHTTP(w, r)
			return
		}
		all.Add(1)
		now := running.Add(1)
		defer running.Add(-1)
		for seen := most.Load(); now > seen && !most.CompareAndSwap(seen, now); seen = most.Load() {
		}
		<-release // as a handler that does not notice that nobody waits for it
	}))
	c := dialHTTP2(t, server)
	go func() { _, _ = io.Copy(io.Discard, c.conn) }() // ends with the connection
	before := runtime.NumGoroutine()
	for i := range uint32(20_000) {
		block := c.block(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/busy")
		if c.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndStream: true, EndHeaders: true}) != nil {
			break // The server has had enough.
		}
		if c.WriteRSTStream(2*i+1, http2.ErrCodeCancel) != nil {
			break
		}
	}
	if goroutines := runtime.NumGoroutine() - before; goroutines > allowed+50 {
		t.Errorf("%d goroutines more", goroutines)
	}
	wantServed(t, server)
	close(release)
	eventually(t, patience, func() bool { return running.Load() == 0 })
	t.Logf("%d handlers at once, %d in all", most.Load(), all.Load())
	if most.Load() > allowed || most.Load() == 0 {
		t.Errorf("%d handlers ran at once, %d allowed", most.Load(), allowed)
	}
}

// floodTime is how long a flood goes on.
const floodTime = 500 * time.Millisecond

// TestHTTP2Floods: frames that cost the server more than the client make it neither run
// out of memory nor forget the others.
func TestHTTP2Floods(t *testing.T) {
	server := startHTTP2(t, New(Config{}, newMemoryMetadata(), newMemoryBlobs()))
	base := []string{":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/v2/"}
	begin := func(c *rawHTTP2) {
		c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(base...), EndStream: true}))
	}
	for _, test := range []struct {
		name  string
		begin func(c *rawHTTP2)
		again func(c *rawHTTP2) error
	}{
		// CVE-2023-45288: a header without an end.
		{"continuations", begin, func(c *rawHTTP2) error { return c.WriteContinuation(1, false, c.block("x", rand.Text()+rand.Text())) }},
		{"empty continuations", begin, func(c *rawHTTP2) error { return c.WriteContinuation(1, false, nil) }},
		// CVE-2019-9512, CVE-2019-9515: answers that nobody reads.
		{"pings", func(*rawHTTP2) {}, func(c *rawHTTP2) error { return c.WritePing(false, [8]byte{}) }},
		{"settings", func(*rawHTTP2) {}, func(c *rawHTTP2) error {
			return c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
		}},
		// CVE-2019-9513: priorities.
		{"priorities", func(*rawHTTP2) {}, func(c *rawHTTP2) error { return c.WritePriority(1, http2.PriorityParam{StreamDep: 3}) }},
		// CVE-2019-9518: empty pieces of a body.
		{"empty data", func(c *rawHTTP2) {
			c.request(1, false, ":method", "POST", ":scheme", "https", ":authority", "a", ":path", "/v2/a/blobs/uploads/")
		}, func(c *rawHTTP2) error { return c.WriteData(1, false, nil) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := dialHTTP2(t, server)
			_ = c.conn.SetWriteDeadline(time.Now().Add(floodTime))
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			test.begin(c)
			ended := make(chan int, 1)
			go func() { // ends at the deadline, or when the server has had enough
				count := 0
				for began := time.Now(); time.Since(began) < floodTime && test.again(c) == nil; {
					count++
				}
				ended <- count
			}()
			for served, began := 0, time.Now(); served < 10 || time.Since(began) < floodTime/2; served++ {
				wantServed(t, server)
			}
			count := <-ended
			runtime.GC()
			runtime.ReadMemStats(&after)
			held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
			t.Logf("%d frames, %d KiB held", count, held>>10)
			if held > 16<<20 {
				t.Errorf("%d MiB are held", held>>20)
			}
			_ = c.conn.SetReadDeadline(time.Now().Add(floodTime))
			if status, _ := c.outcome(1); status == "200" {
				t.Error("the header without an end was taken for one")
			}
		})
	}
}

// TestHTTP2Smuggling: what would be a header of its own in HTTP/1.1, or end a body
// elsewhere, is refused.
func TestHTTP2Smuggling(t *testing.T) {
	metadata := newMemoryMetadata()
	server := startHTTP2(t, New(Config{}, metadata, newMemoryBlobs()))
	get := func(fields ...string) []string {
		return append([]string{":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/v2/"}, fields...)
	}
	for name, fields := range map[string][]string{
		"a line break in a value":       get("x", "a\r\ny: b"),
		"a NUL in a value":              get("x", "a\x00b"),
		"a line break in a name":        get("x\r\ny", "a"),
		"capitals in a name":            get("X-Y", "a"),
		"a colon in a name":             get("x:y", "a"),
		"an empty name":                 get("", "a"),
		"Transfer-Encoding":             get("transfer-encoding", "chunked"),
		"Connection":                    get("connection", "close"),
		"Upgrade":                       get("upgrade", "h2c"),
		"TE":                            get("te", "gzip"),
		"a pseudo header behind others": get("x", "a", ":path", "/v2/other"),
		"a pseudo header twice":         {":method", "GET", ":method", "DELETE", ":scheme", "https", ":authority", "a", ":path", "/v2/"},
		"an unknown pseudo header":      get(":other", "a"),
		"no method":                     {":scheme", "https", ":authority", "a", ":path", "/v2/"},
		"no path":                       {":method", "GET", ":scheme", "https", ":authority", "a"},
		"an empty path":                 {":method", "GET", ":scheme", "https", ":authority", "a", ":path", ""},
		"a path without a slash":        {":method", "GET", ":scheme", "https", ":authority", "a", ":path", "v2/"},
		"a line break in the path":      {":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/v2/ HTTP/1.1\r\nHost: b"},
		"a line break in the method":    {":method", "GET /v2/a HTTP/1.1\r\nX: ", ":scheme", "https", ":authority", "a", ":path", "/v2/"},
	} {
		c := dialHTTP2(t, server)
		c.request(1, true, fields...)
		if status, code := c.outcome(1); status == "200" || status == "202" || (status == "" && code == http2.ErrCodeNo) || strings.HasPrefix(status, "5") {
			t.Errorf("%s: got %q, %v", name, status, code)
		}
	}
	// A body that is shorter or longer than its Content-Length.
	for name, body := range map[string]string{"shorter": "hell", "longer": "hello!"} {
		c := dialHTTP2(t, server)
		c.request(1, true, ":method", "POST", ":scheme", "https", ":authority", "a", ":path", "/v2/a/blobs/uploads/")
		if status, code := c.outcome(1); status != "202" {
			t.Fatalf("upload not started: %q, %v", status, code)
		}
		metadata.mu.Lock()
		id := ""
		for id = range metadata.uploads {
		}
		metadata.mu.Unlock()
		c.request(3, false, ":method", "PATCH", ":scheme", "https", ":authority", "a", ":path", "/v2/a/blobs/uploads/"+id, "content-length", "5")
		if err := c.WriteData(3, true, []byte(body)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
		if status, code := c.outcome(3); strings.HasPrefix(status, "2") {
			t.Errorf("a body that is %s: got %q, %v", name, status, code)
		}
		if size := metadata.upload(id).Size; size != 0 {
			t.Errorf("a body that is %s: %d bytes were stored", name, size)
		}
	}
	wantServed(t, server)
}

// TestHTTP2Headers: the bound of a header holds for what it is unpacked, too.
func TestHTTP2Headers(t *testing.T) {
	server := startHTTP2(t, New(Config{}, newMemoryMetadata(), newMemoryBlobs()))
	c := dialHTTP2(t, server)
	fields := []string{":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/v2/"}
	for range 2000 { // after the first, each is one byte on the wire
		fields = append(fields, "x", strings.Repeat("x", 1000))
	}
	block := c.block(fields...)
	if len(block) > 8<<10 {
		t.Fatalf("the packed header has %d bytes: the test shows nothing", len(block))
	}
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true, EndHeaders: true}))
	if status, code := c.outcome(1); status != "431" && code == http2.ErrCodeNo {
		t.Errorf("got %q, %v", status, code)
	}
	wantServed(t, server)
}
