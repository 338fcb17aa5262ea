package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// eventually waits until condition holds, and fails the test when it does not
// within the time given.
func eventually(t *testing.T, within time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(within)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("after %s still not: %s", within, what)
		}
	}
}

// pollInterval is how often eventually looks.
const pollInterval = 100 * time.Millisecond

func runCommand(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), args, &out, &errs)
	return out.String(), err
}

func TestCommandFaults(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"sevre"}, `unknown command "sevre": did you mean "serve"?`},
		{[]string{"serve", "--registry-lisen=x"}, `unknown flag "--registry-lisen": did you mean "--registry-listen"?`},
		{[]string{"serve", "extra"}, "extra"},
		{[]string{"serve", "--name=Not A Name", "--data=" + t.TempDir()}, `name: "Not A Name" is not a node name`},
		{[]string{"serve", "--limits-uploads=0"}, "limits.uploads: 0 is not at least 1"},
		{[]string{"dev", "--nodes=0"}, "--nodes: 0 is not 1 to 9"},
		{[]string{"dev", "--nodes=10"}, "--nodes: 10 is not 1 to 9"},
		{[]string{"dev", "--listen=nonsense"}, `--listen: "nonsense" is not HOST:PORT`},
		{[]string{"certs", "n1"}, `"dir"`},
		{[]string{"status", "--data=" + t.TempDir()}, "no node has run in"},
		{[]string{"status", "--data=/nowhere"}, "/nowhere"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			_, err := runCommand(t, test.args...)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want it to say %q", err, test.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	out, err := runCommand(t, "version")
	if err != nil || !strings.HasPrefix(out, "atoll ") {
		t.Errorf("version prints %q, %v", out, err)
	}
}

func TestCertsCommand(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []string{"made " + dir + "/n1/node.crt\n", "kept " + dir + "/n1/node.crt\n"} {
		out, err := runCommand(t, "certs", "--dir", dir, "n1")
		if err != nil || out != want {
			t.Errorf("certs prints %q, %v, want %q", out, err, want)
		}
	}
}

// A command ends when it is told to, before it has done anything.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"version"}, &bytes.Buffer{}, &bytes.Buffer{}); err != nil {
		t.Errorf("version: %v", err)
	}
}
