package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// requireDocker skips a test without a Docker engine.
func requireDocker(t *testing.T) {
	t.Helper()
	requireTool(t, "docker")
	if out, err := tryCommand(t, "docker", "version", "--format", "{{.Server.Version}}"); err != nil {
		skip(t, "no Docker engine answers: "+out)
	}
}

// dockerImage makes an image in the Docker engine: a root file system that is
// imported, and a layer of random bytes on top. It is gone when the test ends.
func dockerImage(t *testing.T, name string, size int) (id string) {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root.tar")
	writeLayer(t, root, "etc-motd", 100<<10)
	base := name + "-base"
	command(t, "docker", "import", root, base)
	removeImage(t, base)
	if err := os.WriteFile(filepath.Join(dir, "payload"), randomBytes(size), 0o600); err != nil {
		t.Fatal(err)
	}
	dockerfile := "FROM " + base + "\nCOPY payload /payload\nCOPY Dockerfile /Dockerfile\nCMD [\"/payload\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte("root.tar\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "docker", "build", "--quiet", "--tag", name, dir)
	removeImage(t, name)
	return imageID(t, name)
}

func imageID(t *testing.T, name string) string {
	t.Helper()
	return command(t, "docker", "image", "inspect", "--format", "{{.Id}}", name)
}

// removeImage removes a name, and the image with its last name, when the test ends.
func removeImage(t *testing.T, name string) {
	t.Cleanup(func() {
		cleanup(t, "docker", "image", "rm", "--force", name)
	})
}

// cleanup runs a command after the test, whose context has ended by then.
func cleanup(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := runDetached(argv...); err != nil && !strings.Contains(out, "No such image") {
		t.Errorf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// repullDocker removes an image from the engine and pulls it again.
func repullDocker(t *testing.T, name, id string, pull func()) {
	t.Helper()
	command(t, "docker", "image", "rm", "--force", id)
	if _, err := tryCommand(t, "docker", "image", "inspect", name); err == nil {
		t.Fatalf("the engine still has %s, so a pull would show nothing", name)
	}
	pull()
	if got := imageID(t, name); got != id {
		t.Errorf("after the pull %s is %s, want %s", name, got, id)
	}
}

// The Docker engine pushes and pulls through the balancer and through each node.
func TestDocker(t *testing.T) {
	requireDocker(t)
	c := startDev(t, t.TempDir())
	for _, through := range []string{"", "n1", "n2", "n3"} {
		name := c.host(through) + "/docker/app:one"
		id := dockerImage(t, name, 5<<20)
		command(t, "docker", "push", "--quiet", name)
		pull := func() { repullDocker(t, name, id, func() { command(t, "docker", "pull", "--quiet", name) }) }
		if pull(); through == "" {
			c.wantRedirected("docker", pull)
		}
	}
}

// The node that the engine talks to is killed in the middle of docker push, and in
// the middle of docker pull: its own retries do. Then the same with the leader.
func TestDockerKill(t *testing.T) {
	requireDocker(t)
	// The bytes must come through the proxy, which sees how far a pull is.
	c := startDev(t, t.TempDir(), "--set=registry.redirect=off")
	proxy := startPacedProxy(t, c.host(""))
	var acknowledged []pushed
	for role, victims := range map[string][2]func() string{
		"partner": {func() string { return c.busy("uploads") }, func() string { return c.busy("pulls") }},
		"leader":  {c.leader, c.leader},
	} {
		t.Run(role, func(t *testing.T) {
			repository := "docker/app:" + role
			name := proxy.address + "/" + repository
			id := dockerImage(t, name, killLayer)
			killed := ""
			if _, err := proxy.during(t, killAt, func() { killed = victims[0](); c.kill(killed) }, "docker", "push", name); err != nil {
				t.Fatalf("push while %s was killed: %v", killed, err)
			}
			image := pushed{repository, craneDigest(t, c.host(""), repository)}
			acknowledged = append(acknowledged, image)
			image.verify(t, c.host(""))
			c.restart(killed)
			repullDocker(t, name, id, func() {
				if _, err := proxy.during(t, killAt, func() { killed = victims[1](); c.kill(killed) }, "docker", "pull", name); err != nil {
					t.Fatalf("pull while %s was killed: %v", killed, err)
				}
			})
			c.restart(killed)
		})
	}
	if !t.Failed() {
		c.killAll(acknowledged)
	}
}
