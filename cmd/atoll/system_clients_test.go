package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// clientLayers are the sizes of the layers that each client pushes.
func clientLayers() []int { return []int{300 << 10, 20 << 20, 100} }

// Every client that people use pushes, lists, pulls, copies and deletes, as far as
// it can, through a balancer that gives each request to the next node. Each has
// content of its own, or the second would push nothing. Large layers are read from
// whichever node is their home.
func TestClients(t *testing.T) {
	c := startDev(t, t.TempDir(), "--set=registry.redirect=always")
	t.Run("all", func(t *testing.T) {
		for name, client := range map[string]func(*testing.T, string){
			"docker": clientDocker, "skopeo": clientSkopeo, "podman": clientPodman, "buildah": clientBuildah, "crane": clientCrane,
			"containerd": clientContainerd, "oras": clientORAS, "regclient": clientRegclient,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				client(t, c.host(""))
			})
		}
	})
	if t.Failed() {
		return
	}
	c.waitHealthy()
	if sent, followed := c.decisions("redirect"), c.decisions("signed"); sent == 0 || followed == 0 {
		t.Errorf("%d pulls were redirected and %d followed: the test shows nothing of that", sent, followed)
	}
}

// decisions counts the pulls that all nodes have redirected, or have not, for a
// reason.
func (c *devCluster) decisions(reason string) (total int) {
	c.t.Helper()
	line := regexp.MustCompile(`(?m)^atoll_gateway_redirect_decisions_total\{decision="` + reason + `"\} ([0-9]+)$`)
	for _, n := range c.file().Nodes {
		_, metrics := request(c.t, http.MethodGet, n.Operations+"/metrics", nil)
		for _, found := range line.FindAllSubmatch(metrics, -1) {
			count, err := strconv.Atoi(string(found[1]))
			if err != nil {
				c.t.Fatal(err)
			}
			total += count
		}
	}
	return total
}

// wantRedirected repeats a pull until one of its blobs was redirected, and wants
// the client to have followed. Right after a start the nodes may not know yet that
// the others are well.
func (c *devCluster) wantRedirected(client string, pull func()) {
	c.t.Helper()
	redirected, followed := c.decisions("redirect"), c.decisions("signed")
	eventually(c.t, formTimeout, client+" is redirected", func() bool {
		pull()
		return c.decisions("redirect") > redirected
	})
	if redirected, followed := c.decisions("redirect")-redirected, c.decisions("signed")-followed; redirected != followed {
		c.t.Errorf("%s was redirected %d times, and followed %d times", client, redirected, followed)
	}
}

// gone checks that a manifest can't be had any more.
func gone(t *testing.T, host, name string) {
	t.Helper()
	out, err := tryCommand(t, program(t, "crane"), "digest", host+"/"+name)
	if err == nil || !strings.Contains(out, "404") && !strings.Contains(out, "MANIFEST_UNKNOWN") {
		t.Errorf("%s was deleted, and crane says of it: %s", name, out)
	}
}

func clientDocker(t *testing.T, host string) {
	requireDocker(t)
	name, copied := host+"/clients/docker:one", host+"/clients/docker-copy:one"
	id := dockerImage(t, name, 20<<20)
	command(t, "docker", "push", "--quiet", name)
	repullDocker(t, name, id, func() { command(t, "docker", "pull", "--quiet", name) })
	command(t, "docker", "tag", name, copied)
	removeImage(t, copied)
	if out := command(t, "docker", "push", copied); !strings.Contains(out, "Mounted from clients/docker") {
		t.Errorf("the engine has not mounted the layers, it says:\n%s", out)
	}
	digest := craneDigest(t, host, "clients/docker:one")
	pushed{"clients/docker-copy:one", digest}.verify(t, host)
}

func clientSkopeo(t *testing.T, host string) {
	requireTool(t, "skopeo")
	first, second := "docker://"+host+"/clients/skopeo:one", "docker://"+host+"/clients/skopeo-copy:two"
	command(t, "skopeo", "copy", "--dest-tls-verify=false", "docker-archive:"+makeImage(t, clientLayers()...), first)
	image := pushed{"clients/skopeo:one", craneDigest(t, host, "clients/skopeo:one")}
	command(t, "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", first, second)
	target := filepath.Join(t.TempDir(), "copy")
	command(t, "skopeo", "copy", "--src-tls-verify=false", second, "dir:"+target)
	verifySkopeoDir(t, target, image.digest)
	var listed struct{ Tags []string }
	out := command(t, "skopeo", "list-tags", "--tls-verify=false", strings.TrimSuffix(second, ":two"))
	if err := json.Unmarshal([]byte(out), &listed); err != nil || !slices.Equal(listed.Tags, []string{"two"}) {
		t.Errorf("skopeo lists %s, %v", out, err)
	}
	if out := command(t, "skopeo", "inspect", "--tls-verify=false", "--format={{.Digest}}", first); out != image.digest {
		t.Errorf("skopeo inspect says %s, want %s", out, image.digest)
	}
	command(t, "skopeo", "delete", "--tls-verify=false", second)
	gone(t, host, "clients/skopeo-copy:two")
	image.verify(t, host)
}

func clientCrane(t *testing.T, host string) {
	crane := program(t, "crane")
	image := cranePush(t, host, "clients/crane:one", makeImage(t, clientLayers()...))
	command(t, crane, "copy", host+"/clients/crane:one", host+"/clients/crane-copy:two")
	command(t, crane, "tag", host+"/clients/crane:one", "three")
	if tags := command(t, crane, "ls", host+"/clients/crane"); tags != "one\nthree" {
		t.Errorf("crane lists %q", tags)
	}
	if catalog := strings.Fields(command(t, crane, "catalog", host)); !slices.Contains(catalog, "clients/crane-copy") {
		t.Errorf("crane's catalog is %q", catalog)
	}
	copied := pushed{"clients/crane-copy:two", image.digest}
	copied.verify(t, host)
	command(t, crane, "pull", host+"/"+copied.name, filepath.Join(t.TempDir(), "image.tar"))
	command(t, crane, "delete", host+"/clients/crane:three")
	gone(t, host, "clients/crane:three")
	image.verify(t, host)
	command(t, crane, "delete", host+"/clients/crane@"+image.digest)
	gone(t, host, image.name)
	copied.verify(t, host)
}

// containersTool returns a command of podman or buildah with storage of its own.
func containersTool(t *testing.T, name string) (run func(args ...string) string) {
	t.Helper()
	requireTool(t, name)
	dir := t.TempDir()
	config := filepath.Join(dir, "containers.conf")
	// Not the locks in shared memory, which all processes of the machine have.
	if err := os.WriteFile(config, []byte("[engine]\nlock_type = \"file\"\nevents_logger = \"none\"\ncgroup_manager = \"cgroupfs\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	argv := []string{"env", "CONTAINERS_CONF=" + config, "XDG_RUNTIME_DIR=" + dir, "BUILDAH_ISOLATION=chroot",
		name, "--storage-driver=vfs", "--root=" + filepath.Join(dir, "root"), "--runroot=" + filepath.Join(dir, "run")}
	if name == "podman" {
		argv = append(argv, "--tmpdir="+filepath.Join(dir, "tmp"))
	}
	return func(args ...string) string {
		t.Helper()
		return command(t, slices.Concat(argv, args)...)
	}
}

func clientPodman(t *testing.T, host string) {
	podman := containersTool(t, "podman")
	name, copied := host+"/clients/podman:one", host+"/clients/podman-copy:two"
	podman("load", "--quiet", "--input="+makeImage(t, clientLayers()...))
	id := podman("images", "--quiet", "--no-trunc")
	podman("tag", id, name)
	podman("tag", id, copied)
	podman("push", "--quiet", "--tls-verify=false", name)
	podman("push", "--quiet", "--tls-verify=false", copied)
	podman("rmi", "--all", "--force")
	for _, pulled := range []string{name, copied} {
		podman("pull", "--quiet", "--tls-verify=false", pulled)
		if got := podman("image", "inspect", "--format=sha256:{{.Id}}", pulled); got != id {
			t.Errorf("podman has pulled %s as %s, want %s", pulled, got, id)
		}
	}
	repository := strings.TrimSuffix(copied, ":two")
	out := podman("search", "--list-tags", "--tls-verify=false", repository)
	if got := strings.Fields(out); !slices.Equal(got, []string{"NAME", "TAG", repository, "two"}) {
		t.Errorf("podman lists %q", out)
	}
	pushed{"clients/podman-copy:two", craneDigest(t, host, "clients/podman:one")}.verify(t, host)
}

// buildah makes an image of two layers from nothing.
func clientBuildah(t *testing.T, host string) {
	buildah := containersTool(t, "buildah")
	name, copied := host+"/clients/buildah:one", host+"/clients/buildah-copy:two"
	dir := t.TempDir()
	from := "scratch"
	for i, size := range clientLayers()[:2] {
		file := filepath.Join(dir, "file"+string(rune('a'+i)))
		if err := os.WriteFile(file, randomBytes(size), 0o600); err != nil {
			t.Fatal(err)
		}
		container := buildah("from", from)
		buildah("copy", "--quiet", container, file, "/")
		buildah("commit", "--quiet", "--rm", container, name)
		from = name
	}
	buildah("tag", name, copied)
	for _, image := range []string{name, copied} {
		buildah("push", "--quiet", "--tls-verify=false", image, "docker://"+image)
	}
	id := buildah("inspect", "--type=image", "--format={{.FromImageID}}", name)
	buildah("rmi", "--all", "--force")
	for _, image := range []string{name, copied} {
		buildah("pull", "--quiet", "--tls-verify=false", image)
		if got := buildah("inspect", "--type=image", "--format={{.FromImageID}}", image); got != id {
			t.Errorf("buildah has pulled %s as %s, want %s", image, got, id)
		}
	}
	pushed{"clients/buildah-copy:two", craneDigest(t, host, "clients/buildah:one")}.verify(t, host)
}
