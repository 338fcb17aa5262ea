package mutant

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// jumpMain sets its own clock, and looks at what follows from that.
const jumpMain = `package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"
)

// seeWall waits until the wall clock has gone from a time by more than that.
func seeWall(from time.Time, by time.Duration) bool {
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(time.Millisecond) {
		gone := time.Now().Round(0).Sub(from.Round(0))
		if by > 0 && gone > by || by < 0 && gone < by {
			return true
		}
	}
	return false
}

func main() {
	file := os.Args[1]
	encoded, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	block, _ := pem.Decode(encoded)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	verify := func() error {
		_, err := certificate.Verify(x509.VerifyOptions{Roots: roots})
		return err
	}
	start := time.Now()
	late := start.Add(time.Minute)
	ctx, cancel := context.WithDeadline(context.Background(), late)
	defer cancel()
	fmt.Println("year", start.Year() > 2100, "verifies", verify() == nil)
	os.WriteFile(file, []byte("0s\n"), 0o600)
	fmt.Println("back", seeWall(start, -24*time.Hour), "verifies", verify() == nil)
	before := time.Now()
	os.WriteFile(file, []byte("-1500ms"), 0o600)
	fmt.Println("slow", seeWall(before, -time.Second))
	fmt.Println("since", time.Since(start) < 45*time.Second, time.Until(late) > 0, ctx.Err())
}
`

func TestClockJumpsAndMonotonicTimeDoesNot(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles much of the standard library")
	}
	ctx := limited(t)
	dir := t.TempDir()
	program, file, certificate := filepath.Join(dir, "program"), filepath.Join(dir, "clock"), filepath.Join(dir, "cert.pem")
	if err := Build(ctx, tiny(t, jumpMain), program, Clock()); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(nil) // whose certificate is good from 1970 to 2084
	defer server.Close()
	write(t, certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	write(t, file, "876000h") // 100 years, which is there before main
	cmd := exec.CommandContext(ctx, program, file, certificate)
	cmd.Env = append(os.Environ(), ClockVariable+"="+file)
	out, err := cmd.CombinedOutput()
	want := "year true verifies false\nback true verifies true\nslow true\nsince true true <nil>\n"
	if err != nil || string(out) != want {
		t.Errorf("it prints %q, not %q: %v", out, want, err)
	}
}

// TestAtollsClockJumps also shows that atoll can be built with all that is for every run.
func TestAtollsClockJumps(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles atoll and the standard library")
	}
	ctx := limited(t)
	dir := t.TempDir()
	program, file := filepath.Join(dir, "atoll"), filepath.Join(dir, "clock")
	if err := Build(ctx, atollRoot, program, append(Clock(), Tuning()...)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, program, "serve", "--bootstrap", "--name", "n1", "--data", filepath.Join(dir, "data"), "--auth-enabled=false",
		"--registry-listen", "127.0.0.1:0", "--registry-plain-http", "--cluster-listen", "127.0.0.1:0", "--cluster-address", "127.0.0.1:1",
		"--operations-listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), ClockVariable+"="+file)
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(os.Interrupt) }, time.Minute
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	registry := ""
	for registry == "" {
		line := nextLine(t, lines)
		if ahead := time.Until(line.Time); ahead > time.Minute {
			t.Fatalf("before the jump it is %s ahead", ahead)
		}
		registry = line.Registry
	}
	write(t, file, "1000h")
	awaitDate(t, ctx, "http://"+registry+"/v2/", 1000*time.Hour)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	line := nextLine(t, lines)
	for line.Message != "stopping" {
		line = nextLine(t, lines)
	}
	if ahead := time.Until(line.Time); ahead < 999*time.Hour {
		t.Errorf("after the jump it is only %s ahead", ahead)
	}
	for lines.Scan() {
		continue // to its end, which Wait must not cut short
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}

// limited returns a context for a build and what is done with it.
func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	t.Cleanup(cancel)
	return ctx
}

// logLine is what of a line of atoll's log is looked at.
type logLine struct {
	Time              time.Time
	Message, Registry string
}

// nextLine fails the test when there are no more.
func nextLine(t *testing.T, lines *bufio.Scanner) (line logLine) {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("atoll's log has ended: %v", lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", lines.Bytes(), err)
	}
	return line
}

// awaitDate waits until a server's replies say that its clock is about so far ahead.
func awaitDate(t *testing.T, ctx context.Context, url string, ahead time.Duration) {
	t.Helper()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		date, err := http.ParseTime(response.Header.Get("Date"))
		if err != nil {
			t.Fatal(err)
		}
		if (time.Until(date) - ahead).Abs() < time.Minute {
			return
		}
	}
}
