package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestPlanDev(t *testing.T) {
	plan, err := planDev("0.0.0.0:6000", "some/folder", 3)
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
		if _, err := planDev(test.listen, t.TempDir(), test.nodes); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("planDev(%q, %d nodes) says %v, want %q", test.listen, test.nodes, err, test.want)
		}
	}
	if _, err := planDev("127.0.0.1:65332", t.TempDir(), 3); err != nil {
		t.Errorf("the highest port: %v", err)
	}
}

// freePort finds a port for a balancer whose nodes' ports are free too.
func freePort(t *testing.T) int {
	t.Helper()
	for port := 21000; port < 30000; port += 301 {
		plan, err := planDev(net.JoinHostPort(devHost, strconv.Itoa(port)), t.TempDir(), maxDevNodes)
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
			if nodes, err := nodesIn(dir); err != nil || nodes != 0 {
				t.Errorf("there are %d nodes, %v: something was started", nodes, err)
			}
		})
	}
}

func TestDevKeepsItsNodes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"n1", "n2", "n3", "n4"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := runCommand(t, "dev", "--nodes=3", "--data="+dir); err == nil || !strings.Contains(err.Error(), "holds the data of 4 nodes") {
		t.Errorf("error is %v, want it to say that nodes would be missing", err)
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
