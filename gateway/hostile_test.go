package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// What somebody can send who means harm. The other half of it, who is not allowed to do
// what they ask for, is in attack_test.go.

// rawStatuses sends bytes and reads the statuses of all replies until the server closes
// the connection.
func (r *registry) rawStatuses(text string) (statuses []int) {
	r.t.Helper()
	conn, reader := r.dial(text)
	defer conn.Close()
	for {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		statuses = append(statuses, response.StatusCode)
	}
}

// TestSmuggledRequests: what a proxy on the way may have taken for a part of a body is
// never taken for a request.
func TestSmuggledRequests(t *testing.T) {
	r := newRegistry(t, Config{})
	victim := r.push("a", "hello")
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	smuggled := "DELETE /v2/a/blobs/" + victim + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	const patch = "PATCH /v2/a/blobs/uploads/upload-1 HTTP/1.1\r\nHost: a\r\n"
	const chunked = patch + "Transfer-Encoding: chunked\r\n\r\n"
	const end = "\r\n\r\n0\r\n\r\n"
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"the proxy goes by the length":     {patch + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked", 5+len(smuggled)) + end, http.StatusAccepted},
		"the proxy goes by the chunks":     {patch + "Transfer-Encoding: chunked\r\nContent-Length: 4" + end, http.StatusAccepted},
		"a length and an unknown coding":   {patch + "Content-Length: 5\r\nTransfer-Encoding: xchunked" + end, http.StatusNotImplemented},
		"chunks twice":                     {patch + "Transfer-Encoding: chunked, chunked" + end, http.StatusNotImplemented},
		"two headers":                      {patch + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked" + end, http.StatusNotImplemented},
		"two headers, one identity":        {patch + "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked" + end, http.StatusNotImplemented},
		"identity":                         {patch + "Transfer-Encoding: identity\r\nContent-Length: 5" + end, http.StatusNotImplemented},
		"a tab":                            {patch + "Transfer-Encoding:\tchunked" + end, http.StatusAccepted},
		"a vertical tab":                   {patch + "Transfer-Encoding: \x0bchunked" + end, http.StatusBadRequest},
		"quotes":                           {patch + "Transfer-Encoding: \"chunked\"" + end, http.StatusNotImplemented},
		"a space before the colon":         {patch + "Transfer-Encoding : chunked" + end, http.StatusBadRequest},
		"a folded header":                  {patch + "Transfer-Encoding:\r\n chunked" + end, http.StatusAccepted},
		"a carriage return within":         {patch + "X: a\rTransfer-Encoding: chunked" + end, http.StatusBadRequest},
		"a NUL within":                     {patch + "X: a\x00b\r\nTransfer-Encoding: chunked" + end, http.StatusBadRequest},
		"a list of lengths":                {patch + "Content-Length: 0, 0\r\n\r\n", http.StatusBadRequest},
		"an octal length":                  {patch + "Content-Length: 0x0\r\n\r\n", http.StatusBadRequest},
		"an empty length":                  {patch + "Content-Length: \r\n\r\n", http.StatusBadRequest},
		"a length beyond 64 bits":          {patch + "Content-Length: 99999999999999999999\r\n\r\n", http.StatusBadRequest},
		"line feeds between chunks":        {chunked + "2\nxx\n0\n\n", http.StatusBadRequest},
		"a line feed in an extension":      {chunked + "2;\nxx\r\n0\r\n\r\n", http.StatusBadRequest},
		"a negative chunk":                 {chunked + "-2\r\nxx\r\n0\r\n\r\n", http.StatusBadRequest},
		"a chunk's size with a prefix":     {chunked + "0x2\r\nxx\r\n0\r\n\r\n", http.StatusBadRequest},
		"a chunk's size beyond 64 bits":    {chunked + "ffffffffffffffff2\r\nxx\r\n0\r\n\r\n", http.StatusBadRequest},
		"a chunk that is longer":           {chunked + "2\r\nxxx\r\n0\r\n\r\n", http.StatusBadRequest},
		"a length behind the chunks":       {patch + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 50\r\n\r\n", http.StatusBadRequest},
		"chunks in the old protocol":       {strings.Replace(chunked, "1.1", "1.0", 1) + "0\r\n\r\n", http.StatusAccepted},
		"the protocol before all others":   {"GET /v2/\r\n\r\n", http.StatusBadRequest},
		"the preface of the next protocol": {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", http.StatusNotFound},
		"tabs in the first line":           {"GET\t/v2/\tHTTP/1.1\r\nHost: a\r\n\r\n", http.StatusBadRequest},
		"a space in the path":              {"GET /v2/ x HTTP/1.1\r\nHost: a\r\n\r\n", http.StatusBadRequest},
		"a path in the host":               {"GET /v2/ HTTP/1.1\r\nHost: a/b\r\n\r\n", http.StatusBadRequest},
		"a line break in the host":         {"GET /v2/ HTTP/1.1\r\nHost: a\"b\r\n\r\n", http.StatusBadRequest},
		"a chunked GET":                    {"GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3" + end, http.StatusOK},
		"a refused upload":                 {strings.Replace(patch, "upload-1", "upload-9", 1) + "Transfer-Encoding: chunked\r\nContent-Length: 3" + end, http.StatusNotFound},
	} {
		if statuses := r.rawStatuses(test.request + smuggled); !slices.Equal(statuses, []int{test.status}) {
			t.Errorf("%s: got %v, want %d alone", name, statuses, test.status)
		}
		if response := r.do(http.MethodHead, "/v2/a/blobs/"+victim, nil); response.StatusCode != http.StatusOK {
			t.Fatalf("%s: the smuggled request was executed", name)
		}
	}
}

// TestSlowHeader: a client that never ends its header is cut off, however often it
// sends a little more, and so is one that sends nothing.
func TestSlowHeader(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(New(Config{}, newMemoryMetadata(), newMemoryBlobs()), nil, zerolog.Nop())
	server.ReadHeaderTimeout, server.IdleTimeout = 200*time.Millisecond, 200*time.Millisecond
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	for name, test := range map[string]struct{ first, more string }{
		"nothing at all":              {},
		"a header without an end":     {"GET /v2/ HTTP/1.1\r\nHost: a\r\n", "X: a\r\n"},
		"a line without an end":       {"GET /v2/", "x"},
		"nothing after a reply":       {"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", ""},
		"a header after a good reply": {"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\nGET /v2/ HTTP/1.1\r\n", "X: a\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.DialTimeout("tcp", listener.Addr().String(), patience)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(conn, test.first)
			done := make(chan struct{})
			go func() { // ends with the connection
				defer close(done)
				ticker := time.NewTicker(20 * time.Millisecond)
				defer ticker.Stop()
				for range ticker.C {
					if _, err := io.WriteString(conn, test.more); err != nil || test.more == "" {
						return
					}
				}
			}()
			_, err = io.Copy(io.Discard, conn)
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Error("the connection was still open")
			}
			_ = conn.Close()
			<-done
		})
	}
}

// TestSlowHandshake: so is a client that begins to speak TLS and does not go on.
func TestSlowHandshake(t *testing.T) {
	files := newCertificateFiles(t)
	files.write(1, time.Now().Add(time.Hour))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(http.NotFoundHandler(), TLSConfig(openCertificate(t, files, io.Discard), nil), zerolog.Nop())
	server.ReadHeaderTimeout = 200 * time.Millisecond
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	for name, first := range map[string]string{
		"nothing": "", "a record without an end": "\x16\x03\x01\x40\x00\x01", "the longest message": "\x16\x03\x01\x40\x00\x01\xff\xff\xff" + strings.Repeat("x", 1000),
	} {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), patience)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, first)
		_, err = io.Copy(io.Discard, conn)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the connection was still open", name)
		}
		_ = conn.Close()
	}
}

// TestManyHeaders: as many headers as fit cost little, and more do not fit.
func TestManyHeaders(t *testing.T) {
	r := newRegistry(t, Config{})
	request := func(count int, header string) string {
		var b strings.Builder
		b.WriteString("GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
		for i := range count {
			fmt.Fprintf(&b, header, i)
		}
		return b.String() + "\r\n"
	}
	for _, test := range []struct {
		count  int
		header string
		status int
	}{
		{1000, "X-%d: a\r\n", http.StatusOK},
		{1000, "Authorization: %d\r\n", http.StatusOK},
		{1000, "Accept: a/%d\r\n", http.StatusOK},
		{1000, "X-Forwarded-For: 10.0.0.%d\r\n", http.StatusOK},
		{100_000, "X-%d: a\r\n", http.StatusRequestHeaderFieldsTooLarge},
		{100_000, "a:%d\r\n", http.StatusRequestHeaderFieldsTooLarge},
	} {
		began := time.Now()
		if statuses := r.rawStatuses(request(test.count, test.header)); !slices.Equal(statuses, []int{test.status}) {
			t.Errorf("%d times %q: %v, want %d", test.count, test.header, statuses, test.status)
		}
		if took := time.Since(began); took > patience/2 {
			t.Errorf("%d times %q: took %s", test.count, test.header, took)
		}
	}
}

// hostileNames are what no name may contain.
var hostileNames = []string{
	"..", "../..", "a/../b", "a/./b", ".", "/etc/passwd", "a//b", "\\..\\..", "C:\\windows", "a\x00b", "a\nb", "a\r\nSet-Cookie: x=y", "a\tb", "\x1b[2J",
	"a\x7fb", "\u009b2J", "\u202eexe", "\ufeffa", "ａ", "A", "a b", "a%00b", "a%2e%2e%2fb", "%", "a;b", "a?b", "a#b", "a&b", "a'b", `a"b`, "a<script>", "a|b", "a$(id)",
	"a`id`", "{{.}}", "${jndi:ldap://x}", "-a", "_a", "a-", strings.Repeat("a", 256), strings.Repeat("a/", 200) + "a", strings.Repeat("a", 60_000), "\xff\xfe", "sha256:", "sha256:..",
}

// TestHostileNames: whatever stands in the place of a name is refused as no name, in a
// reply that can't be taken for anything else, and nothing is stored.
func TestHostileNames(t *testing.T) {
	var log safeBuffer
	r := newRegistry(t, Config{Logger: zerolog.New(&log)})
	digest := r.push("a", "hello")
	var paths []string
	for _, name := range hostileNames {
		// Escaped, so that it comes as it is; escaped twice it stays escaped.
		for _, escaped := range []string{url.PathEscape(name), url.PathEscape(url.PathEscape(name))} {
			paths = append(paths,
				"PUT /v2/"+escaped+"/manifests/latest", "POST /v2/"+escaped+"/blobs/uploads/", "POST /v2/"+escaped+"/blobs/uploads/?mount="+digest+"&from=a",
				"GET /v2/"+escaped+"/blobs/"+digest, "GET /v2/"+escaped+"/tags/list", "DELETE /v2/"+escaped+"/blobs/"+digest,
				"PUT /v2/b/manifests/"+escaped, "GET /v2/a/blobs/"+escaped, "GET /v2/a/referrers/"+escaped,
				"PATCH /v2/a/blobs/uploads/"+escaped, "PUT /v2/a/blobs/uploads/"+escaped+"?digest="+digest, "DELETE /v2/a/blobs/uploads/"+escaped)
		}
		paths = append(paths, "POST /v2/b/blobs/uploads/?digest="+url.QueryEscape(name))
	}
	before := r.metadata.counts()
	for _, line := range paths {
		method, path, _ := strings.Cut(line, " ")
		conn, reader := r.dial(line + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatalf("%.200s: %v", line, err)
		}
		content, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		_ = conn.Close()
		if response.StatusCode < 400 || response.StatusCode >= 500 {
			t.Errorf("%.200s: got %d %.200s", line, response.StatusCode, content)
		}
		if method != http.MethodHead && strings.HasPrefix(path, "/v2/") && response.StatusCode != http.StatusBadRequest {
			wantErrorBody(t, line, response, content)
		}
		for name, values := range response.Header {
			if value := strings.Join(values, ""); strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) || name == "Set-Cookie" {
				t.Errorf("%.200s: header %s: %q", line, name, value)
			}
		}
	}
	if after := r.metadata.counts(); after != before {
		t.Errorf("something was stored: %v, before %v", after, before)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(log.String()), "\n") {
		if !json.Valid([]byte(line)) || len(line) > 8*maxLoggedName+maxLoggedError {
			t.Errorf("%d bytes in the log: %.200s", len(line), line)
		}
	}
}

// wantErrorBody checks that a refusal is the registry's own, as JSON.
func wantErrorBody(t *testing.T, what string, response *http.Response, content []byte) {
	t.Helper()
	var body struct {
		Errors []struct{ Code string }
	}
	if err := json.Unmarshal(content, &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code == "" {
		t.Errorf("%.200s: %v, body %.200q", what, err, content)
	}
	if contentType := response.Header.Get("Content-Type"); contentType != "application/json" {
		t.Errorf("%.200s: Content-Type %q", what, contentType)
	}
	if response.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%.200s: a browser may take it for something else", what)
	}
}

// counts is how much there is of everything.
func (m *memoryMetadata) counts() (counts [3]int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, repository := range m.repositories {
		counts[0] += 1 + len(repository.links) + len(repository.manifests) + len(repository.tags)
	}
	counts[1], counts[2] = len(m.blobs), len(m.uploads)
	return counts
}

// TestHostileParameters: parameters and headers that make no sense are refused or do
// not count, and come back in no reply.
func TestHostileParameters(t *testing.T) {
	r := newRegistry(t, Config{})
	digest := r.push("a", "hello")
	location := r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil).Header.Get("Location")
	texts := append([]string{
		"-1", "99999999999999999999", "1e9", "0x10", "+1", "NaN", "", " ", "bytes=", "bytes=-", "bytes=0-,", "bytes=18446744073709551615-18446744073709551616",
		"bytes=" + strings.Repeat("0-0,", 5000) + "0-0", "0-18446744073709551615", "*", `"`, `W/"`, strings.Repeat(`"a",`, 5000), ";;;;", "for=", `for="[`, "=;=;,,",
		"text/html", "a/b/c", "application/json;charset=" + strings.Repeat("x", 1000), "multipart/form-data; boundary=" + strings.Repeat("-", 2000),
	}, hostileNames...)
	for _, text := range texts {
		query := url.QueryEscape(text)
		for _, line := range []string{
			"GET /v2/_catalog?n=" + query, "GET /v2/_catalog?last=" + query, "GET /v2/a/tags/list?n=" + query + "&last=" + query,
			"GET /v2/a/referrers/" + digest + "?artifactType=" + query, "POST /v2/b/blobs/uploads/?mount=" + query, "POST /v2/b/blobs/uploads/?mount=" + digest + "&from=" + query,
			"PUT " + location + "?digest=" + query, "GET /v2/a/blobs/" + digest + "?" + query + "=" + query + "&;&&%zz=%zz", "PUT /v2/a/manifests/latest?tag=" + query,
		} {
			method, path, _ := strings.Cut(line, " ")
			response := r.do(method, path, nil)
			content, _ := io.ReadAll(response.Body)
			if response.StatusCode >= 500 {
				t.Errorf("%.200s: got %d %.200s", line, response.StatusCode, content)
			}
		}
		if strings.ContainsAny(text, "\r\n\x00\x1b\x7f") {
			continue // net/http refuses such headers, see TestSmuggledRequests
		}
		for _, header := range []string{
			"Range", "Content-Range", "If-None-Match", "If-Match", "If-Range", "Accept", "Accept-Encoding", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host",
			"X-Forwarded-Proto", "X-Request-Id", "Expect", "Content-Type", "User-Agent", "Referer", "Origin", "Cookie", "Authorization", "Upgrade", "Te", "Trailer",
		} {
			for _, line := range []string{"GET /v2/a/blobs/" + digest, "PATCH " + location, "PUT /v2/a/manifests/latest", "GET /v2/a/manifests/latest"} {
				method, path, _ := strings.Cut(line, " ")
				conn, reader := r.dial(method + " " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n" + header + ": " + text + "\r\n\r\n")
				response, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatalf("%s with %s: %.100q: %v", line, header, text, err)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				_ = conn.Close()
				if response.StatusCode >= 500 {
					t.Errorf("%s with %s: %.100q: got %d", line, header, text, response.StatusCode)
				}
				if origin := response.Header.Get("Access-Control-Allow-Origin"); origin != "" {
					t.Errorf("pages of other sites may ask: %q", origin)
				}
			}
		}
	}
}

// Bounds of what a manifest may cost: memory that is in use at a time, and bytes
// allocated in all, which is work for the collector.
const (
	maxParseHeld      = 48 << 20
	maxParseAllocated = 128 << 20
)

// TestManifestBombs: manifests of the largest size that are made to cost much are
// refused, or taken, in bounded time and memory.
func TestManifestBombs(t *testing.T) {
	const room = MaxManifestBytes - 400
	fill := func(piece string) string { return strings.TrimSuffix(strings.Repeat(piece, room/len(piece)), ",") }
	names := func(value string) string {
		var b strings.Builder
		for i := 0; b.Len() < room-20; i++ {
			fmt.Fprintf(&b, `"%s":%s,`, strconv.FormatInt(int64(i), 36), value)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	for name, content := range map[string]string{
		"arrays in arrays":       strings.Repeat("[", MaxManifestBytes/2) + strings.Repeat("]", MaxManifestBytes/2),
		"objects in objects":     strings.Repeat(`{"a":`, MaxManifestBytes/6) + "0" + strings.Repeat("}", MaxManifestBytes/6),
		"arrays in a field":      imageJSON(`,"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000)),
		"many names":             imageJSON(`,"x":{` + names("0") + `}`),
		"many annotations":       imageJSON(`,"annotations":{` + names(`""`) + `}`),
		"many objects":           imageJSON(`,"x":[` + fill("{},") + `]`),
		"many layers of nothing": imageJSON(`,"layers":[` + fill("{},") + `]`),
		"many layers":            imageJSON(`,"layers":[` + fill(descriptorJSON("a", digestB)+",") + `]`),
		"many numbers":           imageJSON(`,"x":[` + fill("1,") + `]`),
		"one number":             imageJSON(`,"x":` + strings.Repeat("9", room)),
		"a large exponent":       imageJSON(`,"x":1e999999999`),
		"one text":               imageJSON(`,"x":"` + fill("a") + `"`),
		"escapes":                imageJSON(`,"x":"` + fill(`\u0000`) + `"`),
		"lone surrogates":        imageJSON(`,"x":"` + fill(`\ud800`) + `"`),
	} {
		bytes := []byte(content)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		began := time.Now()
		manifest, err := parseManifest(bytes, ociManifestType)
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		runtime.GC()
		runtime.ReadMemStats(&after)
		held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		runtime.KeepAlive(manifest)
		t.Logf("%s: %d bytes, %s, %d MiB allocated, %d MiB held, error %v", name, len(bytes), took.Round(time.Millisecond), allocated>>20, held>>20, clipError(err))
		if took > patience {
			t.Errorf("%s: took %s", name, took)
		}
		if allocated > maxParseAllocated || held > maxParseHeld {
			t.Errorf("%s: %d MiB were allocated, %d MiB are held", name, allocated>>20, held>>20)
		}
	}
}
