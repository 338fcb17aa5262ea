package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// randomBytes can't be compressed, so that a layer is as large on the wire.
func randomBytes(size int) []byte {
	seed := sha256.Sum256([]byte(time.Now().String()))
	content := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(content) // never fails
	return content
}

// writeLayer writes a tar file with one file of random bytes.
func writeLayer(t *testing.T, path, name string, size int) {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	content := randomBytes(size)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), ModTime: time.Unix(0, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, layer.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// makeImage makes an image with layers of these sizes, as a file that crane and
// skopeo push.
func makeImage(t *testing.T, sizes ...int) (path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "image.tar")
	argv := []string{program(t, "crane"), "append", "--oci-empty-base", "-t", "example.test/image", "-o", path}
	for i, size := range sizes {
		layer := filepath.Join(dir, "layer"+string(rune('a'+i))+".tar")
		writeLayer(t, layer, "file"+string(rune('a'+i)), size)
		argv = append(argv, "-f", layer)
	}
	command(t, argv...)
	return path
}

// pushed is an image whose push was acknowledged.
type pushed struct {
	// name is repository:tag.
	name   string
	digest string
}

// cranePush pushes an image file through a host.
func cranePush(t *testing.T, host, name, image string) pushed {
	t.Helper()
	command(t, program(t, "crane"), "push", image, host+"/"+name)
	return pushed{name, craneDigest(t, host, name)}
}

func craneDigest(t *testing.T, host, name string) string {
	t.Helper()
	return command(t, program(t, "crane"), "digest", host+"/"+name)
}

// verify reads an image whole through a host: manifest, configuration and layers
// must match their digests.
func (p pushed) verify(t *testing.T, host string) {
	t.Helper()
	if got := craneDigest(t, host, p.name); got != p.digest {
		t.Errorf("%s through %s is %s, want %s", p.name, host, got, p.digest)
	}
	command(t, program(t, "crane"), "validate", "--remote", host+"/"+p.name)
}

// layers are the digests of an image's layers and configuration.
func (p pushed) layers(t *testing.T, host string) []string {
	t.Helper()
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	out := command(t, program(t, "crane"), "manifest", host+"/"+p.name)
	if err := json.Unmarshal([]byte(out), &manifest); err != nil {
		t.Fatalf("manifest of %s is %q: %v", p.name, out, err)
	}
	digests := []string{manifest.Config.Digest}
	for _, layer := range manifest.Layers {
		digests = append(digests, layer.Digest)
	}
	return digests
}

// digestOf is the SHA-256 digest of content.
func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// verifySkopeoDir checks what skopeo has copied to a folder: every blob has its
// digest's content.
func verifySkopeoDir(t *testing.T, dir, manifestDigest string) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := digestOf(manifest); got != manifestDigest {
		t.Errorf("skopeo got manifest %s, want %s", got, manifestDigest)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	blobs := 0
	for _, entry := range entries {
		if len(entry.Name()) != 64 {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got := digestOf(content); got != "sha256:"+entry.Name() {
			t.Errorf("skopeo got %s as blob sha256:%s", got, entry.Name())
		}
		blobs++
	}
	if blobs < 2 {
		t.Errorf("skopeo got %d blobs", blobs)
	}
}

// pacedProxy passes TCP on at a bounded pace, so that a transfer takes long
// enough to kill something in its middle, and counts what has passed.
type pacedProxy struct {
	address string
	passed  atomic.Int64
}

const (
	// pacedPiece is passed on in one go, every pacedInterval, for each direction
	// of each connection: 16 MB/s.
	pacedPiece    = 64 << 10
	pacedInterval = 4 * time.Millisecond
)

func startPacedProxy(t *testing.T, target string) *pacedProxy {
	t.Helper()
	p := &pacedProxy{}
	shrink := func(conns ...*net.TCPConn) {
		for _, conn := range conns { // or megabytes would count as passed in either direction
			if err := errors.Join(conn.SetReadBuffer(pacedPiece), conn.SetWriteBuffer(pacedPiece)); err != nil {
				t.Errorf("shrink buffers: %v", err)
			}
		}
	}
	p.address = serveTCP(t, func(client *net.TCPConn) {
		upstream, err := net.DialTimeout("tcp", target, 5*time.Second)
		if err != nil {
			abort(client)
			return
		}
		defer upstream.Close()
		shrink(client, upstream.(*net.TCPConn))
		var both sync.WaitGroup
		both.Go(func() { p.copy(upstream.(*net.TCPConn), client) })
		both.Go(func() { p.copy(client, upstream.(*net.TCPConn)) })
		both.Wait()
	})
	return p
}

func (p *pacedProxy) copy(to, from *net.TCPConn) {
	ticker := time.NewTicker(pacedInterval)
	defer ticker.Stop()
	piece := make([]byte, pacedPiece)
	for {
		n, err := from.Read(piece)
		if _, writeErr := to.Write(piece[:n]); writeErr != nil {
			abort(to, from)
			return
		}
		p.passed.Add(int64(n))
		if err != nil {
			if !errors.Is(err, io.EOF) || to.CloseWrite() != nil {
				abort(to, from)
			}
			return
		}
		if n == len(piece) {
			<-ticker.C
		}
	}
}

// during starts a client's command and does something once so many bytes have
// passed. It returns the command's outcome, and fails the test if the command was
// over before.
func (p *pacedProxy) during(t *testing.T, bytes int64, do func(), argv ...string) (string, error) {
	t.Helper()
	type outcome struct {
		out string
		err error
	}
	ended := make(chan outcome, 1)
	before := p.passed.Load()
	go func() {
		out, err := tryCommand(t, argv...)
		ended <- outcome{out, err}
	}()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for p.passed.Load()-before < bytes {
		select {
		case early := <-ended:
			t.Fatalf("%s ended after %d bytes: %v\n%s", strings.Join(argv, " "), p.passed.Load()-before, early.err, early.out)
		case <-ticker.C:
		}
	}
	do()
	late := <-ended
	return late.out, late.err
}
