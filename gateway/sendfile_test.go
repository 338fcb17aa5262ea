package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/proto"
)

// fileBlobs has one blob in a file, and counts how often it was handed to a connection.
type fileBlobs struct {
	*memoryBlobs
	path  string
	files atomic.Int32
}

// Pull implements Blobs.
func (b *fileBlobs) Pull(_ context.Context, _ string, _ []*proto.Extent, offset, length uint64, _ bool) (io.ReadCloser, error) {
	file, err := os.Open(b.path)
	if err != nil {
		return nil, err
	}
	_, err = file.Seek(int64(offset), io.SeekStart)
	return &fileReader{File: file, blobs: b, left: int64(length)}, err
}

type fileReader struct {
	*os.File
	blobs *fileBlobs
	left  int64
}

// Read implements io.Reader.
func (r *fileReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.File.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

// WriteTo implements io.WriterTo.
func (r *fileReader) WriteTo(w io.Writer) (written int64, err error) {
	for r.left > 0 && err == nil {
		part := &io.LimitedReader{R: r.File, N: min(r.left, 300<<10)}
		var n int64
		n, err = w.(interface {
			SendFile(file *io.LimitedReader) (int64, error)
		}).SendFile(part)
		r.blobs.files.Add(1)
		written, r.left = written+n, r.left-n
		if err == nil && part.N > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return written, err
}

// A blob in a file is sent whole and in parts, on connections of all kinds, and what is not there cuts the
// connection.
func TestSendFile(t *testing.T) {
	content := pattern(0, 1<<20+77)
	blobs := &fileBlobs{memoryBlobs: newMemoryBlobs(), path: filepath.Join(t.TempDir(), "blob")}
	if err := os.WriteFile(blobs.path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	records := newMemoryMetadata()
	records.blobs[someDigest] = &proto.Blob{Digest: someDigest, Size: uint64(len(content))}
	records.make("a").links[someDigest] = true
	var log safeBuffer
	handler := New(Config{Logger: zerolog.New(&log)}, records, blobs)
	plain, secure, second := httptest.NewUnstartedServer(handler), httptest.NewUnstartedServer(handler), httptest.NewUnstartedServer(handler)
	plain.Listener = NewListener(plain.Listener, ListenerConfig{MaxConnections: 10})
	plain.Start()
	secure.StartTLS()
	second.EnableHTTP2 = true
	second.StartTLS()
	for name, server := range map[string]*httptest.Server{"plain": plain, "TLS": secure, "HTTP/2": second} {
		t.Cleanup(server.Close)
		client := &http.Client{Timeout: patience, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: name == "HTTP/2",
		}}
		get := func(ranges string) (*http.Response, []byte, error) {
			t.Helper()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v2/a/blobs/"+someDigest, nil)
			if err != nil {
				t.Fatal(err)
			}
			if ranges != "" {
				request.Header.Set("Range", ranges)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			got, err := io.ReadAll(response.Body)
			return response, got, err
		}
		if err := os.WriteFile(blobs.path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		before := blobs.files.Load()
		if response, got, err := get(""); err != nil || response.StatusCode != http.StatusOK || !bytes.Equal(got, content) {
			t.Errorf("%s: %s, %d bytes, %v", name, response.Status, len(got), err)
		}
		if blobs.files.Load() == before {
			t.Errorf("%s: the file was copied", name)
		}
		if response, got, err := get("bytes=100-99999"); err != nil || response.StatusCode != http.StatusPartialContent || !bytes.Equal(got, content[100:100000]) {
			t.Errorf("%s: a part: %s, %d bytes, %v", name, response.Status, len(got), err)
		}
		if response, got, err := get("bytes=0-9,1000000-1000009"); err != nil || response.StatusCode != http.StatusPartialContent || !bytes.Contains(got, content[1000000:1000010]) {
			t.Errorf("%s: parts: %s, %d bytes, %v", name, response.Status, len(got), err)
		}
		if err := os.Truncate(blobs.path, 700<<10); err != nil {
			t.Fatal(err)
		}
		if _, got, err := get(""); err == nil {
			t.Errorf("%s: %d bytes of a file that was cut off look like all", name, len(got))
		}
		client.CloseIdleConnections()
	}
	eventually(t, patience, func() bool { return strings.Count(log.String(), "unexpected EOF") == 3 })
}

// A client that takes nothing of a file is cut off.
func TestSendFileToSilentClient(t *testing.T) {
	blobs := &fileBlobs{memoryBlobs: newMemoryBlobs(), path: filepath.Join(t.TempDir(), "blob")}
	const size = 64 << 20 // more than sockets hold
	file, err := os.Create(blobs.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		t.Fatal(err)
	}
	records := newMemoryMetadata()
	records.blobs[someDigest] = &proto.Blob{Digest: someDigest, Size: size}
	records.make("a").links[someDigest] = true
	var log safeBuffer
	server := httptest.NewServer(New(Config{Logger: zerolog.New(&log), IdleTimeout: 300 * time.Millisecond}, records, blobs))
	t.Cleanup(server.Close)
	response, err := http.Get(server.URL + "/v2/a/blobs/" + someDigest)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	eventually(t, patience, func() bool { return strings.Contains(log.String(), `"status":499`) })
}

func TestPopularity(t *testing.T) {
	p, now := NewPopularity(), time.Unix(1000, 0)
	for i := range hotAsks {
		if p.Note("a", now) || p.Note("b", now) {
			t.Fatalf("hot after %d", i)
		}
	}
	if !p.Note("a", now) || !p.Note("a", now.Add(hotWindow)) {
		t.Error("it is not hot")
	}
	if p.Note("a", now.Add(hotWindow+1)) {
		t.Error("it is hot for ever")
	}
	for range maxHot {
		p.Note(newRequestID(), now)
	}
	if p.asks.Len() > maxHot {
		t.Errorf("%d are counted", p.asks.Len())
	}
}
