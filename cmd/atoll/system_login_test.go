package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// loginPolicy lets everybody pull what is public, and developers push what is theirs.
const loginPolicy = `
rules:
  - {repositories: ["public/**"], subjects: [anonymous], rights: [pull]}
  - {repositories: ["team/**", "public/**"], subjects: ["group:developers"], rights: [pull, push]}
`

// loginCluster is a cluster where clients log in.
type loginCluster struct {
	*devCluster
	// password is alice's, secret that of the robot ci.
	password, secret string
}

// startLogin starts it, with a user and a robot who are developers, and a policy.
func startLogin(t *testing.T, audit string) *loginCluster {
	t.Helper()
	dir := t.TempDir()
	c := &loginCluster{devCluster: startDev(t, dir, "--set=registry.redirect=always", "--set=auth.enabled=true", "--set=audit.file="+audit)}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(loginPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	c.password = c.operate("user", "add", "alice", "--group", "developers")
	c.secret = c.operate("robot", "create", "ci", "--group", "developers")
	c.operate("policy", "set", policy)
	return c
}

// operate runs a command against one of the nodes and returns what it prints.
func (c *loginCluster) operate(args ...string) string {
	c.t.Helper()
	return command(c.t, append(append([]string{program(c.t, "atoll")}, args...), "--data", c.node("n2").Data)...)
}

// Clients log in with a password and a secret, push, pull and mount through a balancer
// that gives each request to the next node, with redirects; nobody pulls what is
// public, and gets nothing else.
func TestLogin(t *testing.T) {
	audit := filepath.Join(t.TempDir(), "audit.log")
	c := startLogin(t, audit)
	t.Run("all", func(t *testing.T) {
		for name, client := range map[string]func(*testing.T, *loginCluster){
			"docker": loginDocker, "podman": loginPodman, "skopeo": loginSkopeo, "crane": loginCrane,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				client(t, c)
			})
		}
	})
	if t.Failed() {
		return
	}
	content, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"event":"login","result":"ok","subject":"user:alice"`, `"event":"login","result":"denied","login":"alice"`, `"event":"push","result":"ok","subject":"robot:ci"`,
		`"event":"user add"`, `"event":"policy set"`,
	} {
		if !strings.Contains(string(content), want) {
			t.Errorf("the audit log has no %s", want)
		}
	}
	for _, secret := range []string{c.password, c.secret, "Bearer ", "atoll-signature"} {
		if strings.Contains(string(content), secret) {
			t.Errorf("the audit log has %q", secret)
		}
	}
	if c.decisions("signed") == 0 {
		t.Error("no pull was redirected: the test shows nothing of that")
	}
}

// refused runs a client's command that must fail, for want of credentials or rights.
func refused(t *testing.T, argv ...string) {
	t.Helper()
	out, err := tryCommand(t, argv...)
	if err == nil {
		t.Errorf("%s: done, says %s", strings.Join(argv, " "), out)
		return
	}
	for _, reason := range []string{"unauthorized", "UNAUTHORIZED", "denied", "DENIED", "authentication required", "no basic auth credentials", "403", "401"} {
		if strings.Contains(out, reason) {
			return
		}
	}
	t.Errorf("%s: failed for another reason: %s", strings.Join(argv, " "), out)
}

func loginDocker(t *testing.T, c *loginCluster) {
	requireDocker(t)
	host := c.host("")
	docker := func(args ...string) []string {
		return append([]string{"docker", "--config", filepath.Join(t.TempDir(), "none")}, args...)
	}
	config := t.TempDir()
	alice := func(args ...string) []string { return append([]string{"docker", "--config", config}, args...) }
	own, mounted, public := host+"/team/docker:one", host+"/team/docker-copy:one", host+"/public/docker:one"
	id := dockerImage(t, own, 3<<20)
	refused(t, alice("login", host, "-u", "alice", "-p", "wrong")...)
	refused(t, docker("push", own)...)
	command(t, alice("login", host, "-u", "alice", "-p", c.password)...)
	command(t, alice("push", "--quiet", own)...)
	for _, name := range []string{mounted, public} {
		command(t, "docker", "tag", own, name)
		removeImage(t, name)
	}
	if out := command(t, alice("push", mounted)...); !strings.Contains(out, "Mounted from team/docker") {
		t.Errorf("the engine has not mounted the layers, it says:\n%s", out)
	}
	command(t, alice("push", "--quiet", public)...)
	refused(t, docker("pull", own)...)
	repullDocker(t, public, id, func() { command(t, docker("pull", "--quiet", public)...) })
	repullDocker(t, own, id, func() { command(t, alice("pull", "--quiet", own)...) })
	command(t, "docker", "tag", own, host+"/other/docker:one")
	removeImage(t, host+"/other/docker:one")
	refused(t, alice("push", host+"/other/docker:one")...)
}

func loginPodman(t *testing.T, c *loginCluster) {
	podman := containersTool(t, "podman")
	host, auth := c.host(""), filepath.Join(t.TempDir(), "auth.json")
	own, public := host+"/team/podman:one", host+"/public/podman:one"
	podman("load", "--quiet", "--input="+makeImage(t, 300<<10, 2<<20))
	id := podman("images", "--quiet", "--no-trunc")
	podman("login", "--tls-verify=false", "--authfile="+auth, "-u", "alice", "-p", c.password, host)
	for _, name := range []string{own, public} {
		podman("tag", id, name)
		podman("push", "--quiet", "--tls-verify=false", "--authfile="+auth, name)
	}
	podman("rmi", "--all", "--force")
	podman("pull", "--quiet", "--tls-verify=false", "--authfile="+auth, own)
	if err := os.WriteFile(auth, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	podman("pull", "--quiet", "--tls-verify=false", "--authfile="+auth, public)
	if got := podman("image", "inspect", "--format=sha256:{{.Id}}", public); got != id {
		t.Errorf("podman has pulled %s, want %s", got, id)
	}
}

func loginSkopeo(t *testing.T, c *loginCluster) {
	requireTool(t, "skopeo")
	host, image := c.host(""), "docker-archive:"+makeImage(t, 300<<10, 2<<20)
	own, public := "docker://"+host+"/team/skopeo:one", "docker://"+host+"/public/skopeo:one"
	robot := "ci:" + c.secret
	refused(t, "skopeo", "copy", "--dest-tls-verify=false", "--dest-no-creds", image, own)
	refused(t, "skopeo", "copy", "--dest-tls-verify=false", "--dest-creds=ci:wrong", image, own)
	command(t, "skopeo", "copy", "--dest-tls-verify=false", "--dest-creds="+robot, image, own)
	command(t, "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds="+robot, "--dest-creds="+robot, own, public)
	command(t, "skopeo", "copy", "--src-tls-verify=false", "--src-no-creds", public, "dir:"+t.TempDir())
	refused(t, "skopeo", "copy", "--src-tls-verify=false", "--src-no-creds", own, "dir:"+t.TempDir())
	refused(t, "skopeo", "delete", "--tls-verify=false", "--creds="+robot, own)
}

func loginCrane(t *testing.T, c *loginCluster) {
	host, image := c.host(""), makeImage(t, 300<<10, 2<<20)
	crane := func(config string, args ...string) []string {
		return append([]string{"env", "DOCKER_CONFIG=" + config, program(t, "crane")}, args...)
	}
	alice, nobody := t.TempDir(), t.TempDir()
	own, public := host+"/team/crane:one", host+"/public/crane:one"
	command(t, crane(alice, "auth", "login", host, "-u", "alice", "-p", c.password)...)
	refused(t, crane(nobody, "push", image, own)...)
	command(t, crane(alice, "push", image, own)...)
	command(t, crane(alice, "copy", own, public)...)
	command(t, crane(nobody, "validate", "--remote", public)...)
	refused(t, crane(nobody, "manifest", own)...)
	command(t, crane(alice, "validate", "--remote", own)...)
	if got := command(t, crane(alice, "ls", host+"/team/crane")...); got != "one" {
		t.Errorf("crane lists %q", got)
	}
	catalog := strings.Fields(command(t, crane(alice, "catalog", host)...))
	for _, name := range []string{"team/crane", "public/crane"} {
		if !strings.Contains(strings.Join(catalog, " "), name) {
			t.Errorf("crane's catalog %q has no %s", catalog, name)
		}
	}
	refused(t, crane(alice, "delete", own)...)
}
