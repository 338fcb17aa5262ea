package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// patternBlobs is Blobs with one blob as large as wanted, whose bytes follow from
// their offsets. It counts what is read.
type patternBlobs struct {
	produced, opened, closed atomic.Int64
	// failAfter makes every reader fail after so many bytes; 0 for not at all.
	failAfter int64
}

func (*patternBlobs) Append(
	context.Context, blobstore.Progress, io.Reader, func(context.Context, blobstore.Recorded) error,
) (blobstore.Progress, []*proto.Extent, uint64, error) {
	return blobstore.Progress{}, nil, 0, blobstore.ErrNoSpace
}

func (b *patternBlobs) Read(_ context.Context, _ []*proto.Extent, offset, length uint64) (io.ReadCloser, error) {
	b.opened.Add(1)
	return &patternReader{blobs: b, next: offset, end: offset + length}, nil
}

type patternReader struct {
	blobs     *patternBlobs
	next, end uint64
	read      int64
}

func (r *patternReader) Read(p []byte) (int, error) {
	if r.next == r.end {
		return 0, io.EOF
	}
	if limit := r.blobs.failAfter; limit > 0 && r.read >= limit {
		return 0, blobstore.ErrTooFewShards
	}
	n := int(min(uint64(len(p)), r.end-r.next))
	for i := range n {
		p[i] = patternByte(r.next + uint64(i))
	}
	r.next, r.read = r.next+uint64(n), r.read+int64(n)
	r.blobs.produced.Add(int64(n))
	return n, nil
}

func (r *patternReader) Close() error { r.blobs.closed.Add(1); return nil }

func patternByte(offset uint64) byte {
	var text [8]byte
	binary.LittleEndian.PutUint64(text[:], offset*0x9E3779B97F4A7C15)
	return text[7]
}

func pattern(offset, length uint64) []byte {
	content := make([]byte, length)
	for i := range content {
		content[i] = patternByte(offset + uint64(i))
	}
	return content
}

// newPatternRegistry returns a registry with one blob, someDigest, in repository a.
func newPatternRegistry(t *testing.T, size uint64, log io.Writer) (*registry, *patternBlobs) {
	t.Helper()
	blobs, records := &patternBlobs{}, newMemoryMetadata()
	records.blobs[someDigest] = &proto.Blob{Digest: someDigest, Size: size}
	records.make("a").links[someDigest] = true
	handler := New(Config{Logger: zerolog.New(log)}, records, blobs)
	return &registry{t: t, metadata: records, gateway: handler.(*gateway), server: startServer(t, handler)}, blobs
}

func rangeHeader(spans []span) string {
	parts := make([]string, 0, len(spans))
	for _, s := range spans {
		parts = append(parts, fmt.Sprintf("%d-%d", s.offset, s.offset+s.length-1))
	}
	return "bytes=" + strings.Join(parts, ",")
}

// checkParts fails unless the reply has exactly the spans, each in its part.
func checkParts(t *testing.T, response *http.Response, size uint64, spans []span) {
	t.Helper()
	kind, parameters, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		t.Fatalf("Content-Type %q: %v", response.Header.Get("Content-Type"), err)
	}
	counted := &countingReader{r: response.Body}
	reader := multipart.NewReader(counted, parameters["boundary"])
	for i, want := range spans {
		part, err := reader.NextPart()
		if err != nil {
			t.Fatalf("part %d: %v", i, err)
		}
		if got := part.Header.Get("Content-Range"); got != want.contentRange(size) || part.Header.Get("Content-Type") != blobType {
			t.Fatalf("part %d: header %v", i, part.Header)
		}
		content, err := io.ReadAll(part)
		if err != nil || !slices.Equal(content, pattern(want.offset, want.length)) {
			t.Fatalf("part %d: %d bytes, %v", i, len(content), err)
		}
	}
	if _, err := reader.NextPart(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last part: %v", err)
	}
	if _, err := io.Copy(io.Discard, counted); err != nil {
		t.Error(err)
	}
	if announced := response.Header.Get("Content-Length"); announced != strconv.FormatInt(counted.n, 10) {
		t.Errorf("Content-Length %s, %d bytes", announced, counted.n)
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// TestMultipleRanges: as many parts as were asked for, in the order asked, each
// exactly what was asked for, in a reply whose length was known before.
func TestMultipleRanges(t *testing.T) {
	const size = 1 << 40
	r, blobs := newPatternRegistry(t, size, io.Discard)
	random := rand.New(rand.NewPCG(1, 2))
	many := make([]span, 0, maxRanges)
	for i := range uint64(maxRanges) {
		many = append(many, span{i * (size / maxRanges), 1 + random.Uint64N(3000)})
	}
	shuffled := slices.Clone(many)
	random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for name, spans := range map[string][]span{
		"two":          {{10, 5}, {100, 7}},
		"adjacent":     {{0, 10}, {10, 10}, {20, 1}},
		"backwards":    {{100, 7}, {10, 5}},
		"gap":          {{0, 3}, {maxGap + 3, 3}, {2*maxGap + 7, 3}},
		"long":         {{1 << 30, 300 << 10}, {1 << 31, 3 * copyBytes}},
		"last bytes":   {{size - 1, 1}, {0, 1}},
		"as many":      many,
		"in disorder":  shuffled,
		"every second": everySecond(maxRanges),
	} {
		t.Run(name, func(t *testing.T) {
			response := r.want(http.StatusPartialContent, http.MethodGet, "/v2/a/blobs/"+someDigest, nil, "Range", rangeHeader(spans))
			checkParts(t, response, size, spans)
			if response.Header.Get("Content-Range") != "" || response.Header.Get("Docker-Content-Digest") != someDigest {
				t.Errorf("header %v", response.Header)
			}
		})
	}
	if opened, closed := blobs.opened.Load(), blobs.closed.Load(); opened != closed {
		t.Errorf("%d readers opened, %d closed", opened, closed)
	}
}

func everySecond(n uint64) (spans []span) {
	for i := range n {
		spans = append(spans, span{2 * i, 1})
	}
	return spans
}

// TestCloseRangesAreReadOnce: ranges in the same cells are not each a transfer of
// their own, those far from each other are.
func TestCloseRangesAreReadOnce(t *testing.T) {
	for _, test := range []struct {
		spans           []span
		opened, exactly int64
	}{
		{everySecond(maxRanges), 1, 2*maxRanges - 1},
		{[]span{{0, 1}, {maxGap + 1, 1}}, 1, maxGap + 2},
		{[]span{{0, 1}, {maxGap + 2, 1}}, 2, 2},
		{[]span{{5, 1}, {0, 1}}, 2, 2},
		{[]span{{0, 1}, {5, 1}, {1 << 30, 1}, {1<<30 + 1, 1}}, 2, 8},
	} {
		r, blobs := newPatternRegistry(t, 1<<40, io.Discard)
		response := r.want(http.StatusPartialContent, http.MethodGet, "/v2/a/blobs/"+someDigest, nil, "Range", rangeHeader(test.spans))
		checkParts(t, response, 1<<40, test.spans)
		if opened, read := blobs.opened.Load(), blobs.produced.Load(); opened != test.opened || read != test.exactly {
			t.Errorf("%v: %d readers and %d bytes, want %d and %d", test.spans[:2], opened, read, test.opened, test.exactly)
		}
	}
}

// TestMultipartReadErrors: before the first byte a failure is told, later it
// breaks the connection.
func TestMultipartReadErrors(t *testing.T) {
	r := newRegistry(t, Config{})
	digest := r.push("a", strings.Repeat("x", 1000000))
	for _, after := range []int{0, 1, 99999} {
		r.blobs.failReads(blobstore.ErrTooFewShards, after)
		response, err := r.try(http.MethodGet, "/v2/a/blobs/"+digest, nil, "Range", "bytes=0-99999,600000-700000")
		if err != nil {
			continue // Not even the header came.
		}
		content, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if after == 0 {
			if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Content-Type") != "application/json" {
				t.Errorf("at once: got %d %v", response.StatusCode, response.Header)
			}
		} else if err == nil {
			t.Errorf("after %d: %d bytes, then a clean end with status %d", after, len(content), response.StatusCode)
		}
	}
}

// TestReadingIsLazy: a client that hangs up in the middle of a range without an
// end, as containerd does, makes the registry read no more than what it sent and
// what the sockets hold.
func TestReadingIsLazy(t *testing.T) {
	const (
		size   = 1 << 40
		wanted = 1 << 20
		// ahead is more than the buffers of both sockets (by default 4 MiB and 6 MiB
		// at most on Linux), the HTTP server's and the copy's.
		ahead = 32 << 20
	)
	for name, header := range map[string]string{
		"the whole blob":  "",
		"without an end":  "Range: bytes=123-\r\n",
		"from the middle": fmt.Sprintf("Range: bytes=%d-\r\n", uint64(size/2)),
		"the last bytes":  fmt.Sprintf("Range: bytes=-%d\r\n", uint64(size/2)),
		"several":         fmt.Sprintf("Range: bytes=0-%d,%d-\r\n", uint64(size/4), uint64(size/2)),
	} {
		t.Run(name, func(t *testing.T) {
			var log safeBuffer
			r, blobs := newPatternRegistry(t, size, &log)
			conn, reader := r.dial("GET /v2/a/blobs/" + someDigest + " HTTP/1.1\r\nHost: a\r\n" + header + "\r\n")
			if _, err := io.CopyN(io.Discard, reader, wanted); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
			eventually(t, patience, func() bool { return strings.Contains(log.String(), `"status":499`) })
			if produced := blobs.produced.Load(); produced < wanted/2 || produced > wanted+ahead {
				t.Errorf("%d bytes were read for a client that took %d", produced, wanted)
			}
			if opened, closed := blobs.opened.Load(), blobs.closed.Load(); opened != 1 || closed != 1 {
				t.Errorf("%d readers opened, %d closed", opened, closed)
			}
		})
	}
}

func TestOverlap(t *testing.T) {
	for _, test := range []struct {
		spans []span
		want  bool
	}{
		{[]span{{0, 1}}, false},
		{[]span{{0, 5}, {5, 5}}, false},
		{[]span{{5, 5}, {0, 5}}, false},
		{[]span{{0, 6}, {5, 5}}, true},
		{[]span{{5, 5}, {0, 6}}, true},
		{[]span{{3, 1}, {3, 1}}, true},
		{[]span{{0, 10}, {20, 1}, {3, 2}}, true},
		{[]span{{0, 1<<63 - 1}, {1<<63 - 2, 1}}, true},
	} {
		if got := overlap(test.spans); got != test.want {
			t.Errorf("%v: got %v", test.spans, got)
		}
	}
}

// Pull implements Blobs.
func (b *patternBlobs) Pull(ctx context.Context, _ string, extents []*proto.Extent, offset, length uint64, _ bool) (io.ReadCloser, error) {
	return b.Read(ctx, extents, offset, length)
}
