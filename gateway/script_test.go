package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/metadata"
)

var rewrite = flag.Bool("rewrite", false, "write what the gateway answers into testdata")

// TestScripts runs testdata/*.txt, each against an empty registry. A script is a
// row of requests with the replies that are expected:
//
//	# Why this is so.
//	@let hello = hello world
//	PUT /v2/lib/app/blobs/uploads/upload-1?digest=${sha256 hello}
//	Content-Type: application/octet-stream
//	@chunked
//	| ${hello}
//	----
//	201
//	Location: /v2/lib/app/blobs/${sha256 hello}
//
// Lines of a body begin with "| ". ${name}, ${sha256 name}, ${sha512 name},
// ${hex name} and ${size name} stand for a text set with @let, its digests, the
// first one's digits and its length;
// ${repeat name n} for n copies. ${upload} is the id of the upload that was last
// answered. @fail METHOD ERROR makes a method of Metadata or
// Blobs fail until "@fail METHOD none". Date, request id and the headers that
// every reply has are left out of the replies. Run with -rewrite after a change,
// and read the diff.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file, startServer) })
	}
}

// TestScriptsOverHTTP2 has the same replies, except that no connection is closed.
func TestScriptsOverHTTP2(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 || *rewrite {
		t.Skipf("scripts %v are being rewritten, or %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file, startHTTP2) })
	}
}

type script struct {
	t        *testing.T
	metadata *memoryMetadata
	blobs    *memoryBlobs
	server   *httptest.Server
	client   *http.Client
	texts    map[string]string
	// names has for each digest that was used how the script writes it.
	names map[string]string
}

// scriptRequest is one request as the script has it.
type scriptRequest struct {
	method, target string
	header         http.Header
	body           string
	chunked        bool
}

func runScript(t *testing.T, file string, start func(*testing.T, http.Handler) *httptest.Server) {
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, metadata: newMemoryMetadata(), blobs: newMemoryBlobs(), texts: map[string]string{}, names: map[string]string{}}
	s.blobs.extentBytes = 8
	s.server = start(t, New(Config{Logger: zerolog.Nop()}, s.metadata, s.blobs))
	s.client = s.server.Client()
	s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

	var out strings.Builder
	lines := strings.Split(string(content), "\n")
	for i := 0; i < len(lines); {
		line := lines[i]
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "@") {
			s.directive(line)
			out.WriteString(line + "\n")
			i++
			continue
		}
		end := i + slices.Index(lines[i:], "----")
		if end < i {
			t.Fatalf("%s:%d: request without ----", file, i+1)
		}
		input := lines[i : end+1]
		stop := end + 1
		for stop < len(lines) && lines[stop] != "" {
			stop++
		}
		want := strings.Join(lines[end+1:stop], "\n")
		if s.server.EnableHTTP2 {
			want = strings.ReplaceAll(want, "\nConnection: close", "")
		}
		got := s.run(s.parse(input[:len(input)-1]))
		if got != want && !*rewrite {
			t.Errorf("%s:%d: %s\n--- got\n%s\n--- want\n%s", file, i+1, line, got, want)
		}
		out.WriteString(strings.Join(input, "\n") + "\n" + got + "\n")
		i = stop
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// startServer serves a handler as a node does.
func startServer(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.Config = NewServer(handler, nil, zerolog.Nop())
	server.Start()
	t.Cleanup(server.Close)
	return server
}

var scriptErrors = map[string]error{
	"none":            nil,
	"unavailable":     metadata.ErrUnavailable,
	"outcome-unknown": metadata.ErrOutcomeUnknown,
	"holder-unknown":  metadata.ErrHolderUnknown,
	"no-space":        fmt.Errorf("write extent: %w", blobstore.ErrNoSpace),
	"too-few-nodes":   blobstore.ErrInsufficientNodes,
	"too-few-shards":  blobstore.ErrTooFewShards,
	"stale":           errStale,
	"tag-immutable":   fmt.Errorf("put manifest: %w", &metadata.TagImmutableError{Tag: "v1"}),
	"too-many":        metadata.ErrTooManyUploads,
	"strange":         errors.New("secret of the inside"),
}

// directive carries out a line that stands before a request.
func (s *script) directive(line string) {
	words := strings.Fields(line)
	switch {
	case line == "" || words[0] == "#" || strings.HasPrefix(line, "#"):
	case words[0] == "@let" && len(words) > 3 && words[2] == "=":
		_, text, _ := strings.Cut(line, " = ")
		s.texts[words[1]] = s.expand(text)
		for _, algorithm := range []string{"sha256", "sha512"} {
			s.expand("${" + algorithm + " " + words[1] + "}") // So that replies are abbreviated.
		}
	case words[0] == "@fail" && len(words) == 3:
		err, known := scriptErrors[words[2]]
		if !known {
			s.t.Fatalf("unknown error in %q", line)
		}
		switch words[1] {
		case "Append":
			s.blobs.appendErr = err
		case "Read":
			s.blobs.readErr = err
		default:
			s.metadata.setFailure(words[1], err)
		}
	default:
		s.t.Fatalf("unknown directive %q", line)
	}
}

var variable = regexp.MustCompile(`\$\{([a-z0-9]+)(?: ([a-z0-9-]+))?(?: ([0-9]+))?\}`)

// expand puts texts and digests in the place of their names.
func (s *script) expand(line string) string {
	return variable.ReplaceAllStringFunc(line, func(use string) string {
		parts := variable.FindStringSubmatch(use)
		if parts[2] == "" {
			return s.text(parts[1])
		}
		text := s.text(parts[2])
		switch parts[1] {
		case "sha256", "sha512":
			digest := digestOf(parts[1], []byte(text))
			s.names[digest] = use
			return digest
		case "hex":
			_, encoded, _ := strings.Cut(digestOf("sha256", []byte(text)), ":")
			return encoded
		case "size":
			return strconv.Itoa(len(text))
		case "repeat":
			n, _ := strconv.Atoi(parts[3])
			return strings.Repeat(text, n)
		}
		s.t.Fatalf("unknown use %q", use)
		return ""
	})
}

func (s *script) text(name string) string {
	text, found := s.texts[name]
	if !found && name != "empty" {
		s.t.Fatalf("no text %q", name)
	}
	return text
}

func (s *script) parse(lines []string) scriptRequest {
	method, target, _ := strings.Cut(s.expand(lines[0]), " ")
	r := scriptRequest{method: method, target: target, header: http.Header{}}
	var body []string
	for _, line := range lines[1:] {
		switch {
		case strings.HasPrefix(line, "| "), line == "|":
			body = append(body, s.expand(strings.TrimPrefix(strings.TrimPrefix(line, "|"), " ")))
		case line == "@chunked":
			r.chunked = true
		default:
			name, value, found := strings.Cut(s.expand(line), ": ")
			if !found {
				s.t.Fatalf("not a header: %q", line)
			}
			r.header.Add(name, value)
		}
	}
	r.body = strings.Join(body, "\n")
	return r
}

// run sends a request and writes down the reply.
func (s *script) run(sr scriptRequest) string {
	var body io.Reader
	switch {
	case sr.chunked: // A reader of an unknown kind has no length for net/http.
		body = io.MultiReader(strings.NewReader(sr.body))
	case sr.body != "":
		body = strings.NewReader(sr.body)
	}
	r, err := http.NewRequestWithContext(context.Background(), sr.method, s.server.URL+sr.target, body)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header = sr.header
	r.Header.Set("User-Agent", "")
	response, err := s.client.Do(r)
	if err != nil {
		return "error: " + strings.TrimPrefix(err.Error(), sr.method+` "`+s.server.URL)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if id := response.Header.Get("Docker-Upload-Uuid"); id != "" {
		s.texts["upload"] = id
	}

	out := []string{strconv.Itoa(response.StatusCode)}
	for _, name := range s.headers(response) {
		for _, value := range response.Header[name] {
			out = append(out, name+": "+value)
		}
	}
	if response.Close {
		out = append(out, "Connection: close")
	}
	if id := response.Header.Get("X-Request-Id"); id != "" {
		content = bytes.ReplaceAll(content, []byte(id), []byte("REQUEST-ID"))
	}
	lines := bufio.NewScanner(bytes.NewReader(content))
	lines.Buffer(nil, MaxManifestBytes+1)
	for lines.Scan() {
		text := s.abbreviate(lines.Text())
		if len(text) > 600 {
			text = fmt.Sprintf("%s... %d bytes", text[:60], len(text))
		}
		out = append(out, "| "+text)
	}
	if err != nil {
		out = append(out, "broken off: "+err.Error())
	}
	return s.abbreviate(strings.Join(out, "\n"))
}

// headers returns the names of the headers that are worth writing down.
func (s *script) headers(response *http.Response) (names []string) {
	for name, value := range map[string]string{"Docker-Distribution-Api-Version": "registry/2.0", "X-Content-Type-Options": "nosniff"} {
		if got := response.Header.Get(name); got != value {
			s.t.Errorf("%s is %q", name, got)
		}
	}
	everywhere := []string{"Date", "X-Request-Id", "Docker-Distribution-Api-Version", "X-Content-Type-Options"}
	for name := range response.Header {
		if !slices.Contains(everywhere, name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// abbreviate writes digests as the script does.
func (s *script) abbreviate(text string) string {
	for digest, name := range s.names {
		text = strings.ReplaceAll(text, digest, name)
	}
	return text
}
