package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// AdminSocket is the operator's socket, in the data folder.
const AdminSocket = "admin.sock"

// Bounds of what is asked over the socket.
const (
	// adminTimeout is for a question that the node answers from memory.
	adminTimeout = 15 * time.Second
	// adminErrorBytes is how much of an error's text is read.
	adminErrorBytes = 64 << 10
)

// askAdmin puts a request to the node whose data folder is given and decodes its
// answer.
func askAdmin(ctx context.Context, dataDir, method, path string, into any) error {
	body, err := openAdmin(ctx, dataDir, method, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(into); err != nil {
		return fmt.Errorf("ask node in %s: read its answer: %w", dataDir, err)
	}
	return nil
}

// sendAdmin is askAdmin for a question that has a body in JSON, nil for none, and may
// have to wait for the cluster.
func sendAdmin(ctx context.Context, dataDir, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, operateTimeout)
	defer cancel()
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("ask node in %s: %w", dataDir, err)
		}
		content = bytes.NewReader(encoded)
	}
	answer, err := openAdmin(ctx, dataDir, method, path, content)
	if err != nil {
		return err
	}
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(into); err != nil {
		return fmt.Errorf("ask node in %s: read its answer: %w", dataDir, err)
	}
	return nil
}

// openAdmin puts a request to the node whose data folder is given and returns the
// body of its answer.
func openAdmin(ctx context.Context, dataDir, method, path string, body io.Reader) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask node in %s: %w", dataDir, err)
	}
	response, err := adminClient(dataDir).Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask node in %s: no node answers there: %w", dataDir, err)
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, adminErrorBytes)) // the status says enough without
	if response.StatusCode == http.StatusConflict {
		return nil, refusal(strings.TrimSpace(string(text)))
	}
	return nil, fmt.Errorf("ask node in %s: it answered %s: %s", dataDir, response.Status, strings.TrimSpace(string(text)))
}

// adminClient reaches the socket of the node whose data folder is given.
func adminClient(dataDir string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialSocket(ctx, dataDir)
		},
	}}
}

// A socket's path may have at most 107 bytes on Linux (unix(7)), a data folder's
// path many more. Through /proc/self/fd the folder has a short name.
func socketPath(dir string) (path string, release func(), err error) {
	folder, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(fmt.Sprintf("/proc/self/fd/%d", folder.Fd()), AdminSocket), func() { folder.Close() }, nil
}

func dialSocket(ctx context.Context, dir string) (net.Conn, error) {
	path, release, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", path)
}

func listenSocket(dir string) (net.Listener, error) {
	path, release, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	// The folder is locked by this process, so a socket found in it is a dead
	// one's.
	if err := os.Remove(filepath.Join(dir, AdminSocket)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(filepath.Join(dir, AdminSocket), 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}
