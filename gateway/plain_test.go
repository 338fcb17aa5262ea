package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestTLSOnPlainPort: a client that speaks TLS to a port for plain HTTP gets an answer
// that it can make sense of, and the operator is told, not once for each attempt.
func TestTLSOnPlainPort(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log safeBuffer
	server := NewServer(New(Config{}, newMemoryMetadata(), newMemoryBlobs()), nil, zerolog.Nop())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(PlainListener(listener, zerolog.New(&log))) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	get := func(scheme string) (*http.Response, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+listener.Addr().String()+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err == nil {
			_ = response.Body.Close()
		}
		return response, err
	}
	if response, err := get("http"); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("plain HTTP: %v, %v", response, err)
	}
	if log.String() != "" {
		t.Errorf("plain HTTP is logged: %s", log.String())
	}
	for range 3 {
		if _, err := get("https"); err == nil || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
			t.Errorf("TLS: %v", err)
		}
	}
	if got := strings.Count(log.String(), "a client speaks TLS"); got != 1 {
		t.Errorf("logged %d times: %s", got, log.String())
	}
}

// TestPlainConnKeepsReadFrom: what a TCP connection can do with files is not lost on
// the way through the listener.
func TestPlainConnKeepsReadFrom(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	plain := PlainListener(listener, zerolog.Nop())
	client, err := net.DialTimeout("tcp", listener.Addr().String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_ = listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := plain.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(io.ReaderFrom); !ok {
		t.Error("no ReadFrom")
	}
}
