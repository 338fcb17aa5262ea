package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	go func() {
		ended <- server.Serve(NewListener(listener, ListenerConfig{MaxConnections: 100, PlainHTTP: true, Logger: zerolog.New(&log)}))
	}()
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

// TestConnectionLimit: connections beyond the limit are closed at once and counted,
// those below are served, and a place that was given back can be had again.
func TestConnectionLimit(t *testing.T) {
	const limit = 20
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log safeBuffer
	registry := prometheus.NewRegistry()
	server := NewServer(New(Config{}, newMemoryMetadata(), newMemoryBlobs()), nil, zerolog.Nop())
	ended := make(chan error, 1)
	bounded := NewListener(listener, ListenerConfig{MaxConnections: limit, Logger: zerolog.New(&log), Metrics: registry})
	go func() { ended <- server.Serve(bounded) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	// opens opens a connection and says whether it is served.
	opens := func() (net.Conn, bool) {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), patience)
		if err != nil {
			return nil, false // the reset can be faster
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return conn, false
		}
		_ = response.Body.Close()
		return conn, response.StatusCode == http.StatusOK
	}
	var open []net.Conn
	for range limit {
		conn, served := opens()
		if !served {
			t.Fatalf("connection %d was refused", len(open)+1)
		}
		open = append(open, conn)
	}
	for range limit {
		if _, served := opens(); served {
			t.Fatal("one too many was served")
		}
	}
	if got := strings.Count(log.String(), "connections are refused"); got != 1 {
		t.Errorf("logged %d times", got)
	}
	if got := plainMetric(t, registry, "atoll_gateway_connections_refused_total"); got != limit {
		t.Errorf("%v refused are counted, want %d", got, limit)
	}
	for _, conn := range open[:limit/2] {
		_ = conn.Close()
	}
	eventually(t, patience, func() bool { return plainMetric(t, registry, "atoll_gateway_connections") == limit/2 })
	if _, served := opens(); !served {
		t.Error("a place that was given back can't be had")
	}
}

// plainMetric returns a metric without labels.
func plainMetric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if metric := family.GetMetric()[0]; family.GetName() == name {
			return metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// TestBoundConnKeepsReadFrom: what a TCP connection can do with files is not lost on
// the way through the listener.
func TestPlainConnKeepsReadFrom(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	plain := NewListener(listener, ListenerConfig{MaxConnections: 1})
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
