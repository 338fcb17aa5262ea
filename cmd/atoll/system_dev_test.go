package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// A cluster from its first start to its second, with real clients on the way.
func TestDevCluster(t *testing.T) {
	requireTool(t, "skopeo")
	dir := filepath.Join(t.TempDir(), "data")
	c := startDev(t, dir)
	file := c.file()
	if want := "http://127.0.0.1:" + strconv.Itoa(c.port); file.Registry != want || len(file.Nodes) != 3 {
		t.Fatalf("dev.json is %+v, want registry %s and 3 nodes", file, want)
	}
	for _, n := range file.Nodes {
		if !alive(n.PID) || httpStatus(t, n.Registry+"/v2/") != 200 || httpStatus(t, n.Operations+"/livez") != 200 {
			t.Errorf("node %+v does not run", n)
		}
	}
	image := makeImage(t, 3<<20, 100, 20<<20)
	first := cranePush(t, c.host(""), "crane/app:one", image)
	hosts := []string{c.host(""), c.host("n1"), c.host("n2"), c.host("n3")}
	for _, host := range hosts {
		first.verify(t, host)
	}
	second := pushed{"skopeo/app:two", first.digest}
	for _, host := range hosts {
		command(t, "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
			"docker://"+c.host("")+"/"+first.name, "docker://"+host+"/"+second.name)
		target := filepath.Join(t.TempDir(), "copy")
		command(t, "skopeo", "copy", "--src-tls-verify=false", "docker://"+host+"/"+second.name, "dir:"+target)
		verifySkopeoDir(t, target, first.digest)
	}
	c.wantRedirected("crane", func() {
		// By now each node has the image above: it was asked for more than twice.
		fresh := cranePush(t, c.host(""), "crane/fresh:one", makeImage(t, 3<<20))
		for _, id := range []string{"n1", "n2", "n3"} {
			target := filepath.Join(t.TempDir(), "image.tar")
			command(t, program(t, "crane"), "pull", c.host(id)+"/"+fresh.name, target)
			command(t, program(t, "crane"), "validate", "--tarball", target)
		}
	})
	c.waitHealthy()
	if blobs := c.status().Blobs; blobs.Whole < 4 || blobs.Degraded != 0 || blobs.Lost != 0 {
		t.Errorf("blobs are %+v, want at least 4, all whole", blobs)
	}

	// A dead node is shown, not restarted; argv brings it back.
	c.kill("n2")
	dead := c.node("n2")
	eventually(t, 10*time.Second, "dev shows the death", func() bool { return strings.Contains(c.out.String(), "n2 is dead") })
	eventually(t, 30*time.Second, "status shows the death", func() bool {
		for _, n := range c.status().Nodes {
			if n.ID == "n2" && n.State == "unreachable" {
				return true
			}
		}
		return false
	})
	for range 4 { // whoever's turn it is
		second.verify(t, c.host(""))
	}
	if httpStatus(t, dead.Operations+"/livez") != 0 {
		t.Error("somebody has restarted the dead node")
	}
	c.restart("n2")
	eventually(t, 10*time.Second, "dev shows the return", func() bool { return strings.Contains(c.out.String(), "n2 was started by hand") })
	first.verify(t, c.host("n2"))

	c.stop()
	if httpStatus(t, file.Registry+"/v2/") != 0 {
		t.Error("the balancer has outlived dev")
	}
	again := startDev(t, dir)
	if nodes := again.file().Nodes; len(nodes) != 3 {
		t.Errorf("the second start has %d nodes", len(nodes))
	}
	for _, id := range []string{"", "n1", "n2", "n3"} {
		first.verify(t, again.host(id))
		second.verify(t, again.host(id))
	}
	again.stop()
}

// The smallest cluster works too, and JSON is JSON.
func TestDevOneNode(t *testing.T) {
	c := startDev(t, t.TempDir(), "--nodes=1", "--json")
	cranePush(t, c.host(""), "app:one", makeImage(t, 1<<20)).verify(t, c.host("n1"))
	c.stop()
	for line := range strings.Lines(c.out.String()) {
		if !strings.HasPrefix(line, "{") {
			t.Errorf("line is not JSON: %s", line)
		}
	}
	if !strings.Contains(c.out.String(), `"level":"info"`) {
		t.Error("the nodes' own log is not in the output")
	}
}

// Kill -9 of dev takes the nodes with it, and costs nothing.
func TestDevKilled(t *testing.T) {
	dir := t.TempDir()
	c := startDev(t, dir)
	image := cranePush(t, c.host(""), "app:one", makeImage(t, 1<<20))
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.file().Nodes {
		eventually(t, 10*time.Second, "node "+n.ID+" is gone", func() bool { return !alive(n.PID) })
	}
	image.verify(t, startDev(t, dir).host("n3"))
}

// go run does not pass a SIGTERM on; its end must be dev's end too.
func TestDevStopsWithGoRun(t *testing.T) {
	dir := t.TempDir()
	// What go run starts is a temporary binary in such a folder.
	binary := filepath.Join(t.TempDir(), "go-build1", "atoll")
	if err := os.Mkdir(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(program(t, "atoll"), binary); err != nil {
		t.Fatal(err)
	}
	listen := "--listen=127.0.0.1:" + strconv.Itoa(freePort(t))
	shell := exec.Command("sh", "-c", `"$@" & wait`, "sh", binary, "dev", "--nodes=1", "--data="+dir, listen)
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shell.Process.Kill() })
	var file devFile
	eventually(t, formTimeout, "the node is ready", func() bool {
		var err error
		file, err = readDevFile(dir)
		return err == nil && len(file.Nodes) == 1 && httpStatus(t, file.Nodes[0].Operations+"/readyz") == http.StatusOK
	})
	if err := shell.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = shell.Wait() // it was killed
	eventually(t, stopLimit, "the node has stopped", func() bool { return !alive(file.Nodes[0].PID) })
	eventually(t, stopLimit, "dev has stopped", func() bool {
		lock, err := lockDev(dir)
		if err == nil {
			lock.Close()
		}
		return err == nil
	})
}

// The leader's death is no client's failure.
func TestLeaderKilled(t *testing.T) {
	c := startDev(t, t.TempDir())
	image := makeImage(t, 1<<20)
	before := cranePush(t, c.host(""), "app:before", image)
	leader := c.leader()
	c.kill(leader)
	after := cranePush(t, c.host(""), "app:after", image) // at once: the election is hidden
	c.restart(leader)
	if successor := c.leader(); successor == "" {
		t.Error("nobody leads")
	}
	for _, id := range []string{"n1", "n2", "n3"} {
		before.verify(t, c.host(id))
		after.verify(t, c.host(id))
	}
}

// Each step of an upload on another node, and the one that took the bytes dies
// before the last step.
func TestUploadOverThreeNodes(t *testing.T) {
	c := startDev(t, t.TempDir())
	blob := randomBytes(5<<20 + 17)
	half := len(blob) / 2
	started, _ := request(t, http.MethodPost, c.node("n1").Registry+"/v2/app/blobs/uploads/", nil)
	if started.StatusCode != http.StatusAccepted {
		t.Fatalf("POST answers %s", started.Status)
	}
	location := started.Header.Get("Location")
	for i, step := range []struct {
		node string
		body []byte
	}{{"n1", blob[:half]}, {"n2", blob[half:]}} {
		answer, body := request(t, http.MethodPatch, c.node(step.node).Registry+location, step.body)
		if answer.StatusCode != http.StatusAccepted {
			t.Fatalf("PATCH %d answers %s: %s", i, answer.Status, body)
		}
		location = answer.Header.Get("Location")
	}
	c.kill("n2")
	separator := "?"
	if strings.Contains(location, "?") {
		separator = "&"
	}
	finished, body := request(t, http.MethodPut, c.node("n3").Registry+location+separator+"digest="+digestOf(blob), nil)
	if finished.StatusCode != http.StatusCreated {
		t.Fatalf("PUT answers %s: %s", finished.Status, body)
	}
	c.restart("n2")
	for _, id := range []string{"n1", "n2", "n3"} {
		answer, body := request(t, http.MethodGet, c.node(id).Registry+"/v2/app/blobs/"+digestOf(blob), nil)
		if answer.StatusCode != http.StatusOK || digestOf(body) != digestOf(blob) {
			t.Errorf("GET through %s answers %s with %d bytes, want the %d that were pushed", id, answer.Status, len(body), len(blob))
		}
	}
}

// What a node refuses to start on, it says.
func TestServeRefuses(t *testing.T) {
	dir, otherDir := t.TempDir(), t.TempDir()
	c := startDev(t, dir, "--nodes=1")
	// Both clusters have one authority, so that only the data tells them apart.
	if err := os.CopyFS(filepath.Join(otherDir, "certs"), os.DirFS(filepath.Join(dir, "certs"))); err != nil {
		t.Fatal(err)
	}
	argv := c.node("n1").Argv
	refused := func(what, want string, argv []string) {
		t.Helper()
		if _, err := tryCommand(t, argv...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: serve says %v, want %q", what, err, want)
		}
	}
	refused("locked folder", "in use by another atoll process", argv)
	refused("ports in use", "registry.listen: listen tcp", replaceFlag(argv, "--data", filepath.Join(t.TempDir(), "n1")))
	c.stop()
	certs, err := node.MakeCertificates(node.CertificatesConfig{Dir: filepath.Join(dir, "certs"), Nodes: []string{"n9"}})
	if err != nil {
		t.Fatal(err)
	}
	renamed := replaceFlag(argv, "--name", "n9")
	refused("another node's certificate", `was made for node "n1", this is "n9"`, replaceFlag(renamed, "--data", filepath.Join(t.TempDir(), "n9")))
	renamed = replaceFlag(replaceFlag(renamed, "--cluster-cert", certs[0].Cert), "--cluster-key", certs[0].Key)
	refused("another node's folder", `belongs to node "n1", not to "n9"`, renamed)
	refused("damaged certificate", "cluster.cert", replaceFlag(argv, "--cluster-cert", "/dev/null"))
	other := startDev(t, otherDir, "--nodes=1")
	refused("another cluster's data", "belongs to cluster", replaceFlag(argv, "--join", other.node("n1").Cluster))
	if err := os.WriteFile(filepath.Join(dir, "n1", "node.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("damaged folder", "node.json", argv)
}

func replaceFlag(argv []string, flag, value string) []string {
	replaced := slices.Clone(argv)
	for i, arg := range replaced {
		if strings.HasPrefix(arg, flag+"=") {
			replaced[i] = flag + "=" + value
		}
	}
	return replaced
}

// Ctrl-C lets a running transfer finish.
func TestStopFinishesTransfers(t *testing.T) {
	// The bytes must come through the proxy, which sees how far a pull is.
	c := startDev(t, t.TempDir(), "--set=registry.redirect=off")
	image := cranePush(t, c.host(""), "app:one", makeImage(t, 24<<20))
	proxy := startPacedProxy(t, c.host(""))
	layer := image.layers(t, c.host(""))[1]
	out, err := proxy.during(t, 8<<20, func() {
		if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}, program(t, "crane"), "blob", proxy.address+"/app@"+layer)
	if err != nil {
		t.Fatalf("the transfer was cut: %v", err)
	}
	if len(out) < 20<<20 {
		t.Errorf("the transfer has %d bytes", len(out))
	}
	select {
	case <-c.done:
	case <-time.After(stopLimit):
		t.Errorf("dev has not stopped %s after Ctrl-C", stopLimit)
	}
}
