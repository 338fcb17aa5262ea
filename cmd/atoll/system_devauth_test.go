package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// shownPassword is how dev shows the password that it has made.
var shownPassword = regexp.MustCompile(`only time that the password is shown:\n\n  (\S+)\n`)

// A cluster whose clients log in, by TLS: nothing works without, real clients work with
// it, and it stays so at the next start.
func TestDevAuth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	c := startDev(t, dir, "--auth")
	match := shownPassword.FindStringSubmatch(c.out.String())
	authority := filepath.Join(dir, "registry", "trust", "ca.crt")
	if len(match) != 2 || !strings.Contains(c.out.String(), authority) {
		t.Fatalf("dev shows no password, or no authority:\n%s", c.out)
	}
	password := match[1]
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // for crane as for docker
	image := makeImage(t, 3<<20, 100)
	push := func(host string) error {
		_, err := tryCommand(t, program(t, "crane"), "push", image, host+"/app:one")
		return err
	}
	if err := push(c.host("")); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("without the authority: %v", err)
	}
	t.Setenv("SSL_CERT_FILE", authority)
	if err := push(c.host("")); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") {
		t.Errorf("without a login: %v", err)
	}
	logIn := func(host string) {
		t.Helper()
		command(t, program(t, "crane"), "auth", "login", host, "--username", "admin", "--password", password)
	}
	for _, id := range []string{"", "n1", "n2", "n3"} {
		logIn(c.host(id))
	}
	first := cranePush(t, c.host(""), "app:one", image)
	for _, id := range []string{"n1", "n2", "n3"} {
		first.verify(t, c.host(id))
	}
	t.Run("docker", func(t *testing.T) { dockerLogsIn(t, c, password, authority) })

	for _, log := range []string{"n1", "n2", "n3"} {
		content, err := os.ReadFile(filepath.Join(dir, log, "log"))
		if err != nil || strings.Contains(string(content), password) {
			t.Errorf("the log of %s has the password, or none is there: %v", log, err)
		}
	}
	c.stop()
	again := startDev(t, dir)
	if shownPassword.MatchString(again.out.String()) || !strings.Contains(again.out.String(), "the password of before") {
		t.Errorf("the second start shows:\n%s", again.out)
	}
	first.verify(t, again.host("n2"))
	again.stop()
}

// dockerLogsIn: docker trusts an authority in a folder of its own for each registry.
// It does not ask for one on 127.0.0.1, but uses TLS there all the same.
func dockerLogsIn(t *testing.T, c *devCluster, password, authority string) {
	requireDocker(t)
	host := c.host("")
	folder := filepath.Join("/etc/docker/certs.d", host)
	content, err := os.ReadFile(authority)
	if err == nil {
		err = os.MkdirAll(folder, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "ca.crt"), content, 0o600)
	}
	if err != nil {
		skip(t, "the authority can't be given to docker: "+err.Error())
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	name := host + "/docker/app:one"
	id := dockerImage(t, name, 2<<20)
	if out, err := tryCommand(t, "docker", "push", "--quiet", name); err == nil {
		t.Errorf("docker pushed without a login: %s", out)
	}
	if out, err := tryCommand(t, "docker", "login", "--username", "admin", "--password", password+"x", host); err == nil {
		t.Errorf("docker logged in with a wrong password: %s", out)
	}
	command(t, "docker", "login", "--username", "admin", "--password", password, host)
	command(t, "docker", "push", "--quiet", name)
	repullDocker(t, name, id, func() { command(t, "docker", "pull", "--quiet", name) })
}
