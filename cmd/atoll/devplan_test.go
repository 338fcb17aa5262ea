package main

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/atollregistry/atoll/node"
)

func TestPlanDev(t *testing.T) {
	plan, err := planDev("0.0.0.0:6000", "some/folder", 3, false)
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if plan.url != "http://127.0.0.1:6000" {
		t.Errorf("URL is %s: it must be one that works on this machine", plan.url)
	}
	last := plan.nodes[2]
	want := devNodePlan{
		name: "n3", registry: "127.0.0.1:6003", cluster: "127.0.0.1:6103", operations: "127.0.0.1:6203",
		data: filepath.Join(here, "some/folder/n3"),
	}
	if last != want {
		t.Errorf("third node is %+v, want %+v", last, want)
	}
}

func TestPlanDevFaults(t *testing.T) {
	tests := []struct {
		listen string
		nodes  int
		want   string
	}{
		{"127.0.0.1", 3, "is not HOST:PORT"},
		{"127.0.0.1:http", 3, "no port between 1 and"},
		{"127.0.0.1:0", 3, "no port between 1 and"},
		{"127.0.0.1:65333", 3, "no port between 1 and 65332"},
		{"127.0.0.1:5000", 0, "--nodes: 0"},
		{"127.0.0.1:5000", 10, "--nodes: 10"},
	}
	for _, test := range tests {
		if _, err := planDev(test.listen, t.TempDir(), test.nodes, false); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("planDev(%q, %d nodes) says %v, want %q", test.listen, test.nodes, err, test.want)
		}
	}
	if _, err := planDev("127.0.0.1:65332", t.TempDir(), 3, false); err != nil {
		t.Errorf("the highest port: %v", err)
	}
}

// nextPort keeps the clusters of one test run apart.
var nextPort atomic.Int64

// freePort finds a port for a balancer whose nodes' ports are free too.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 12000 + int(nextPort.Add(1))%60*301 // below the ports of outgoing connections
		plan, err := planDev(net.JoinHostPort(devHost, strconv.Itoa(port)), t.TempDir(), maxDevNodes, false)
		if err != nil {
			t.Fatal(err)
		}
		if listener, err := plan.claimPorts(); err == nil {
			listener.Close()
			return port
		}
	}
	t.Fatal("no free ports")
	return 0
}

func TestBusyPortIsNamed(t *testing.T) {
	port := freePort(t)
	for _, test := range []struct {
		offset int
		use    string
	}{{0, "for clients"}, {2, "the registry port of n2"}, {101, "the cluster port of n1"}, {203, "the operations port of n3"}} {
		t.Run(test.use, func(t *testing.T) {
			busy := strconv.Itoa(port + test.offset)
			listener, err := net.Listen("tcp", net.JoinHostPort(devHost, busy))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			dir := filepath.Join(t.TempDir(), "data")
			_, err = runCommand(t, "dev", "--listen=127.0.0.1:"+strconv.Itoa(port), "--data="+dir)
			if err == nil || !strings.Contains(err.Error(), "port "+busy+" ("+test.use+") is not free") {
				t.Errorf("error is %v, want it to name port %s, %s", err, busy, test.use)
			}
			if _, err := os.Stat(filepath.Join(dir, "n1")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a node was started: %v", err)
			}
		})
	}
}

// What the folder holds decides when the flags say nothing, and objects when they
// say something else.
func TestDevKeepsItsNodesAndPorts(t *testing.T) {
	dir := t.TempDir()
	first, err := devConfig{data: dir}.plan()
	if err != nil || first.listen != "127.0.0.1:5000" || len(first.nodes) != 3 {
		t.Errorf("a new folder: %+v, %v", first, err)
	}
	planned, err := devConfig{data: dir, listen: "0.0.0.0:6000", nodes: 4}.plan()
	if err != nil {
		t.Fatal(err)
	}
	left := devFile{Registry: planned.url}
	for _, n := range planned.nodes {
		left.Nodes = append(left.Nodes, devFileNode{ID: n.name, Cluster: n.cluster})
	}
	if err := left.write(dir); err != nil {
		t.Fatal(err)
	}
	again, err := devConfig{data: dir}.plan()
	if err != nil || again.listen != "127.0.0.1:6000" || len(again.nodes) != 4 {
		t.Errorf("a folder of four: %+v, %v", again, err)
	}
	if grown, err := (devConfig{data: dir, nodes: 5}).plan(); err != nil || len(grown.nodes) != 5 {
		t.Errorf("one more: %+v, %v", grown, err)
	}
	for _, test := range []struct {
		cfg  devConfig
		want string
	}{
		{devConfig{data: dir, nodes: 3}, "holds the data of 4 nodes"},
		{devConfig{data: dir, listen: "127.0.0.1:7000"}, "look for each other at the ports that they had with 127.0.0.1:6000"},
	} {
		if _, err := test.cfg.plan(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error is %v, want %q", test.cfg, err, test.want)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, devFileName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (devConfig{data: dir}).plan(); err == nil || !strings.Contains(err.Error(), devFileName) {
		t.Errorf("a damaged dev.json: %v", err)
	}
}

func TestDevLocksItsFolder(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockDev(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := runCommand(t, "dev", "--data="+dir); err == nil || !strings.Contains(err.Error(), "another atoll dev runs on it") {
		t.Errorf("error is %v", err)
	}
}

func TestDevFile(t *testing.T) {
	dir := t.TempDir()
	file := devFile{Registry: "http://127.0.0.1:5000", Nodes: []devFileNode{{
		ID: "n1", PID: 123, Registry: "http://127.0.0.1:5001", Cluster: "127.0.0.1:5101", Operations: "http://127.0.0.1:5201",
		Data: "/data/n1", Argv: []string{"atoll", "serve"},
	}}}
	if err := file.write(dir); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	form := `{"registry":"http://127.0.0.1:5000","nodes":[{"id":"n1","pid":123,"registry":"http://127.0.0.1:5001",
		"cluster":"127.0.0.1:5101","operations":"http://127.0.0.1:5201","data":"/data/n1","argv":["atoll","serve"]}]}`
	if err := json.Unmarshal([]byte(form), &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	if gotJSON, wantJSON := mustJSON(t, got), mustJSON(t, want); gotJSON != wantJSON {
		t.Errorf("dev.json is\n%s, want\n%s", gotJSON, wantJSON)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v, want dev.json alone", entries, err)
	}
}

func mustJSON(t *testing.T, value any) string {
	t.Helper()
	content, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestShellLine(t *testing.T) {
	got := shellLine([]string{"/a b/atoll", "serve", "--zone=it's"})
	if want := `'/a b/atoll' serve '--zone=it'\''s'`; got != want {
		t.Errorf("shellLine = %s, want %s", got, want)
	}
}

func TestDevSettings(t *testing.T) {
	got, err := devSettings([]string{"registry.redirect=always", "collect.grace=1h", "limits.uploads=7"})
	if want := []string{"--registry-redirect=always", "--collect-grace=1h", "--limits-uploads=7"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("flags are %q (%v)", got, err)
	}
	for text, want := range map[string]string{
		"registry.redirect":                     "is not KEY=VALUE",
		"registry.redirct=off":                  "registry.redirect",
		"registry.listen=:1":                    "dev itself chooses registry.listen",
		"collect.grace=soon":                    `collect.grace: "soon" is not a duration`,
		"limits.uploads=1000000000000000000000": "is not a whole number",
	} {
		if _, err := devSettings([]string{text}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", text, err)
		}
	}
}

// With --auth clients speak TLS and log in; the folder remembers it.
func TestDevAuthPlan(t *testing.T) {
	on, off := true, false
	dir := t.TempDir()
	for _, test := range []struct {
		last string
		auth *bool
		want bool
	}{
		{"", nil, false}, {"", &on, true}, {"http://127.0.0.1:5000", nil, false}, {"http://127.0.0.1:5000", &on, true},
		{"https://127.0.0.1:5000", nil, true}, {"https://127.0.0.1:5000", &off, false},
	} {
		if test.last != "" {
			if err := (devFile{Registry: test.last}).write(dir); err != nil {
				t.Fatal(err)
			}
		}
		plan, err := devConfig{data: dir, auth: test.auth}.plan()
		if err != nil {
			t.Fatal(err)
		}
		plan.certificate = node.RegistryCertificate{Cert: "cert", Key: "key"}
		argv := strings.Join(plan.argv("atoll", plan.nodes[0]), " ")
		if plan.auth != test.want || strings.HasPrefix(plan.url, "https://") != test.want || plan.host() != "127.0.0.1:5000" {
			t.Errorf("after %q: auth %t, url %s, host %s", test.last, plan.auth, plan.url, plan.host())
		}
		if strings.Contains(argv, "--registry-tls-cert=cert") != test.want || strings.Contains(argv, "--auth-enabled=false") == test.want ||
			strings.Contains(argv, "--registry-plain-http") == test.want || strings.Contains(argv, "--registry-url=https://") != test.want {
			t.Errorf("after %q, auth %t: %s", test.last, test.want, argv)
		}
	}
}
