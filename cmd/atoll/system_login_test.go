package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes"
	containerd "github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme/reg"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote/auth"
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
	// transport trusts the cluster's certificates, for clients that are libraries.
	transport *http.Transport
}

// startLogin starts it, with a user and a robot who are developers, and a policy.
func startLogin(t *testing.T, audit string) *loginCluster {
	t.Helper()
	dir := t.TempDir()
	c := &loginCluster{devCluster: startDev(t, dir, "--auth", "--set=registry.redirect=always", "--set=audit.file="+audit)}
	authority := filepath.Join(dir, "registry", "trust", "ca.crt")
	t.Setenv("SSL_CERT_FILE", authority) // for those that are programs
	certificate, err := os.ReadFile(authority)
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(certificate) {
		t.Fatalf("%s: %v", authority, err)
	}
	c.transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(c.transport.CloseIdleConnections)
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
			"containerd": loginContainerd, "oras": loginORAS, "regclient": loginRegclient,
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
	c.wantNoSecrets(audit)
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
	podman("login", "--authfile="+auth, "-u", "alice", "-p", c.password, host)
	for _, name := range []string{own, public} {
		podman("tag", id, name)
		podman("push", "--quiet", "--authfile="+auth, name)
	}
	podman("rmi", "--all", "--force")
	podman("pull", "--quiet", "--authfile="+auth, own)
	if err := os.WriteFile(auth, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	podman("pull", "--quiet", "--authfile="+auth, public)
	if got := podman("image", "inspect", "--format=sha256:{{.Id}}", public); got != id {
		t.Errorf("podman has pulled %s, want %s", got, id)
	}
}

func loginSkopeo(t *testing.T, c *loginCluster) {
	requireTool(t, "skopeo")
	host, image := c.host(""), "docker-archive:"+makeImage(t, 300<<10, 2<<20)
	own, public := "docker://"+host+"/team/skopeo:one", "docker://"+host+"/public/skopeo:one"
	robot := "ci:" + c.secret
	refused(t, "skopeo", "copy", "--dest-no-creds", image, own)
	refused(t, "skopeo", "copy", "--dest-creds=ci:wrong", image, own)
	command(t, "skopeo", "copy", "--dest-creds="+robot, image, own)
	command(t, "skopeo", "copy", "--src-creds="+robot, "--dest-creds="+robot, own, public)
	command(t, "skopeo", "copy", "--src-no-creds", public, "dir:"+t.TempDir())
	refused(t, "skopeo", "copy", "--src-no-creds", own, "dir:"+t.TempDir())
	refused(t, "skopeo", "delete", "--creds="+robot, own)
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

// wantNoSecrets searches everything that was written down while all clients were at work,
// by the nodes and for the audit, for what must not be there.
func (c *loginCluster) wantNoSecrets(audit string) {
	c.t.Helper()
	logs, err := filepath.Glob(filepath.Join(c.dir, "n*", "log"))
	if err != nil || len(logs) != 3 {
		c.t.Fatalf("logs of nodes: %v, %v", logs, err)
	}
	encoded := func(name, password string) string {
		return base64.StdEncoding.EncodeToString([]byte(name + ":" + password))
	}
	secrets := map[string]string{
		"the user's password": c.password, "the user's credentials": encoded("alice", c.password),
		"the robot's secret": c.secret, "the robot's credentials": encoded("ci", c.secret),
		// Every token of ours begins with its header, every key ends with this.
		"a token": base64.RawURLEncoding.EncodeToString([]byte(`{"alg"`)), "a key": "PRIVATE KEY",
		"an Authorization header": "Bearer ey", "a signed URL": "atoll-signature",
	}
	for _, path := range append(logs, audit) {
		content, err := os.ReadFile(path)
		if err != nil || len(content) == 0 {
			c.t.Errorf("%s: %d bytes, %v", path, len(content), err)
		}
		for what, secret := range secrets {
			if bytes.Contains(content, []byte(secret)) {
				c.t.Errorf("%s has %s", path, what)
			}
		}
	}
}

// loginContainerd posts the password as a form, as the kubelet's and nerdctl's pulls do.
func loginContainerd(t *testing.T, c *loginCluster) {
	as := func(name, password string) remotes.Resolver {
		return containerd.NewResolver(containerd.ResolverOptions{Hosts: containerd.ConfigureDefaultRegistries(
			containerd.WithClient(&http.Client{Transport: c.transport}),
			containerd.WithAuthorizer(containerd.NewDockerAuthorizer(containerd.WithAuthClient(&http.Client{Transport: c.transport}), containerd.WithAuthCreds(func(string) (string, string, error) { return name, password, nil }))),
		)})
	}
	ctx, host, image := t.Context(), c.host(""), newLibraryImage(t)
	source := containerdStore(t)
	for blob, desc := range image.blobs() {
		ingest(t, source, desc, *blob)
	}
	ingest(t, source, image.descriptor(), image.manifest)
	push := func(resolver remotes.Resolver, name string) error {
		pusher, err := resolver.Pusher(ctx, host+name)
		if err != nil {
			return err
		}
		return remotes.PushContent(ctx, pusher, image.descriptor(), source, oneAtATime(), platforms.All, nil)
	}
	for _, name := range []string{"/team/containerd:one", "/public/containerd:one"} {
		if err := push(as("ci", c.secret), name); err != nil {
			t.Fatalf("push of %s: %v", name, err)
		}
	}
	if err := push(as("ci", "wrong"), "/team/containerd:two"); err == nil {
		t.Error("pushed with a wrong secret")
	}
	containerdPull(t, as("alice", c.password), host+"/team/containerd:one", image)
	containerdPull(t, as("", ""), host+"/public/containerd:one", image)
	if _, _, err := as("", "").Resolve(ctx, host+"/team/containerd:one"); err == nil {
		t.Error("resolved without credentials")
	}
	pusher, err := as("ci", c.secret).Pusher(ctx, host+"/team/containerd-copy:one")
	if err != nil {
		t.Fatal(err)
	}
	hostname, _, _ := strings.Cut(host, ":")
	for _, desc := range image.blobs() {
		desc.Annotations = map[string]string{"containerd.io/distribution.source." + hostname: "team/containerd"}
		if _, err := pusher.Push(ctx, desc); !errdefs.IsAlreadyExists(err) {
			t.Errorf("mount of %s: %v", desc.Digest, err)
		}
	}
}

// loginORAS gets its tokens in both ways: helm posts a form first.
func loginORAS(t *testing.T, c *loginCluster) {
	ctx, host := t.Context(), c.host("")
	for name, form := range map[string]bool{"oras": false, "helm": true} {
		source := memory.New()
		layer, err := oras.PushBytes(ctx, source, "application/octet-stream", randomBytes(2<<20))
		if err != nil {
			t.Fatal(err)
		}
		artifact, err := oras.PackManifest(ctx, source, oras.PackManifestVersion1_1, artifactType, oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
		if err != nil {
			t.Fatal(err)
		}
		if err := source.Tag(ctx, artifact, "one"); err != nil {
			t.Fatal(err)
		}
		repository := orasRepository(t, host+"/team/"+name)
		repository.PlainHTTP, repository.Client = false, &http.Client{Transport: c.transport}
		if _, err := oras.Copy(ctx, source, "one", repository, "one", oras.DefaultCopyOptions); err == nil {
			t.Errorf("%s has pushed without credentials", name)
		}
		repository.Client = &auth.Client{
			Client:     &http.Client{Transport: c.transport},
			Credential: auth.StaticCredential(host, auth.Credential{Username: "alice", Password: c.password}), ForceAttemptOAuth2: form, Cache: auth.NewCache(),
		}
		if _, err := oras.Copy(ctx, source, "one", repository, "one", oras.DefaultCopyOptions); err != nil {
			t.Fatalf("%s pushes: %v", name, err)
		}
		if _, err := oras.Copy(ctx, repository, "one", memory.New(), "one", oras.DefaultCopyOptions); err != nil {
			t.Errorf("%s pulls: %v", name, err)
		}
	}
}

// loginRegclient pushes in chunks, and tries to mount first from wherever there is one.
func loginRegclient(t *testing.T, c *loginCluster) {
	host := c.host("")
	settings := *config.HostNewName(host)
	settings.User, settings.Pass = "ci", c.secret
	settings.BlobChunk, settings.BlobMax = 3<<20, 4<<20
	counts := &requestCounter{next: c.transport}
	rc := regclient.New(regclient.WithConfigHost(settings), regclient.WithRegOpts(reg.WithHTTPClient(&http.Client{Transport: counts})))
	r := regclientTest{t: t, rc: rc, counts: counts, host: host, image: newLibraryImage(t)}
	one := r.ref("team/regclient:one")
	for blob, desc := range r.image.blobs() {
		r.put(one, string(desc.MediaType), *blob)
	}
	r.putManifest(one, r.image.manifest)
	r.pull(one)
	if counts.chunks.Load() == 0 {
		t.Error("nothing was pushed in chunks")
	}
	if tags, err := rc.TagList(t.Context(), one); err != nil || strings.Join(tags.Tags, " ") != "one" {
		t.Errorf("regclient lists %+v, %v", tags, err)
	}
	if err := rc.TagDelete(t.Context(), one); err == nil {
		t.Error("regclient has deleted a tag without the right to")
	}
}
