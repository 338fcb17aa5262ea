package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// composeProject keeps the test's containers apart from others.
const composeProject = "atolltest"

// compose runs docker-compose.yaml in a copy of what it needs.
type compose struct {
	t   *testing.T
	dir string
	// host is the balancer's HOST:PORT.
	host string
}

// startCompose builds the image, makes the balancer's image, and starts all.
func startCompose(t *testing.T) *compose {
	t.Helper()
	c := &compose{t: t, dir: t.TempDir(), host: "127.0.0.1:" + strconv.Itoa(freePort(t))}
	top := filepath.Join("..", "..")
	content, err := os.ReadFile(filepath.Join(top, "docker-compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "docker-compose.yaml"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	deploy := filepath.Join(c.dir, "deploy")
	if err := os.CopyFS(deploy, os.DirFS(filepath.Join(top, "deploy"))); err != nil {
		t.Fatal(err)
	}
	// As the first line of the file says; it may be there already, and old.
	binary, err := os.ReadFile(program(t, "atoll"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(deploy, "atoll")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(deploy, "atoll"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	// The container's user is not the owner of the test's folder.
	for dir := deploy; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	balancer := regexp.MustCompile(`image: (haproxy:\S+)`).FindSubmatch(content)
	if balancer == nil {
		t.Fatal("docker-compose.yaml names no image of haproxy")
	}
	makeHAProxyImage(t, string(balancer[1]))
	if _, err := tryCommand(t, "docker", "image", "inspect", "atoll:dev"); err != nil {
		removeImage(t, "atoll:dev")
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.try("logs", "--no-color", "--tail=60")
			t.Logf("containers say:\n%s", out)
		}
		if out, err := c.try("down", "--volumes", "--remove-orphans", "--timeout=10"); err != nil {
			t.Errorf("docker-compose down: %v: %s", err, out)
		}
	})
	c.run("up", "--build", "--detach")
	eventually(t, 2*formTimeout, "the registry answers", func() bool {
		return httpStatus(t, "http://"+c.host+"/v2/") == http.StatusOK
	})
	return c
}

func (c *compose) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("docker-compose %s: %v:\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *compose) try(args ...string) (string, error) {
	argv := append([]string{"docker-compose", "--project-name", composeProject, "--project-directory", c.dir,
		"--file", filepath.Join(c.dir, "docker-compose.yaml")}, args...)
	return runDetached(append([]string{"env", "REGISTRY_LISTEN=" + c.host}, argv...)...)
}

// runDetached runs a command that may outlive the test's context.
func runDetached(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// makeHAProxyImage makes the balancer's image under its official name from
// Debian's package, with the entry point and command of the official one.
func makeHAProxyImage(t *testing.T, name string) {
	t.Helper()
	if _, err := tryCommand(t, "docker", "image", "inspect", name); err == nil {
		return
	}
	const binary = "/usr/sbin/haproxy"
	files := []string{binary}
	for _, field := range strings.Fields(command(t, "ldd", binary)) {
		if strings.HasPrefix(field, "/") {
			files = append(files, field)
		}
	}
	root := t.TempDir()
	for _, path := range files {
		content, err := os.ReadFile(path) // through links: the copy needs none
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/local/etc/haproxy"), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "root.tar")
	command(t, "tar", "--create", "--file", archive, "--directory", root, "--owner=0", "--group=0", ".")
	command(t, "docker", "import",
		"--change", `ENTRYPOINT ["/usr/sbin/haproxy", "-W", "-db"]`,
		"--change", `CMD ["-f", "/usr/local/etc/haproxy/haproxy.cfg"]`,
		"--change", "USER 99:99",
		archive, name)
	removeImage(t, name)
}

// Three containers and HAProxy: pushes and pulls go on while one of them is gone.
func TestCompose(t *testing.T) {
	requireDocker(t)
	requireTool(t, "docker-compose")
	if _, err := os.Stat("/usr/sbin/haproxy"); err != nil {
		skip(t, "haproxy is not installed")
	}
	c := startCompose(t)
	name := c.host + "/compose/app:one"
	id := dockerImage(t, name, 8<<20)
	command(t, "docker", "push", "--quiet", name)
	pull := func() { command(t, "docker", "pull", "--quiet", name) }
	repullDocker(t, name, id, pull)
	c.wantNoRedirect(pushed{name: "compose/app:one"})

	for _, victim := range []string{"n1", "n2", "n3"} {
		c.run("kill", victim)
		repullDocker(t, name, id, pull)
		during := c.host + "/compose/during:" + victim
		duringID := dockerImage(t, during, 4<<20)
		command(t, "docker", "push", "--quiet", during)
		c.run("start", victim)
		c.waitReady(victim)
		repullDocker(t, during, duringID, func() { command(t, "docker", "pull", "--quiet", during) })
	}
	// A polite stop, of all, and back: the volumes keep everything.
	c.run("stop")
	c.run("up", "--detach")
	eventually(t, 2*formTimeout, "the registry answers", func() bool {
		return httpStatus(t, "http://"+c.host+"/v2/compose/app/manifests/one") == http.StatusOK
	})
	repullDocker(t, name, id, pull)

	// Without a quorum, pulls by digest still work.
	digest := craneDigest(t, c.host, "compose/app:one")
	c.run("kill", "n1", "n2")
	eventually(t, formTimeout, "reads by digest are served", func() bool {
		return httpStatus(t, "http://"+c.host+"/v2/compose/app/manifests/"+digest) == http.StatusOK
	})
	if got := httpStatus(t, "http://"+c.host+"/v2/compose/app/manifests/one"); got != http.StatusServiceUnavailable && got != 0 {
		t.Errorf("without a quorum a tag answers %d, want 503", got)
	}
}

// wantNoRedirect checks that the balancer's clients get all of an image from it:
// they reach no node.
func (c *compose) wantNoRedirect(image pushed) {
	c.t.Helper()
	for _, digest := range image.layers(c.t, c.host) {
		repository, _, _ := strings.Cut(image.name, ":")
		for range 3 { // whoever's turn it is
			request, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "http://"+c.host+"/v2/"+repository+"/blobs/"+digest, nil)
			if err != nil {
				c.t.Fatal(err)
			}
			response, err := http.DefaultTransport.RoundTrip(request)
			if err != nil {
				c.t.Fatal(err)
			}
			if response.Body.Close(); response.StatusCode != http.StatusOK {
				c.t.Errorf("GET of %s answers %s %s", digest, response.Status, response.Header.Get("Location"))
			}
		}
	}
}

// waitReady waits until the node itself says that the cluster has it back.
func (c *compose) waitReady(id string) {
	c.t.Helper()
	var out string
	deadline := time.Now().Add(formTimeout)
	eventually(c.t, formTimeout, id+" is back", func() bool {
		var err error
		out, err = c.try("exec", "-T", id, "/atoll", "status", "--data=/data")
		if err != nil && time.Now().Add(time.Second).After(deadline) {
			c.t.Log(out)
		}
		return err == nil && strings.Contains(out, "active") && !strings.Contains(out, "unreachable")
	})
}
