package node

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func makeCertificates(t *testing.T, dir string, nodes ...string) []NodeCertificate {
	t.Helper()
	made, err := MakeCertificates(CertificatesConfig{Dir: dir, Nodes: nodes})
	if err != nil {
		t.Fatalf("MakeCertificates(%v): %v", nodes, err)
	}
	return made
}

func identityOf(t *testing.T, files NodeCertificate) *clusterTLS {
	t.Helper()
	identity, err := loadClusterTLS(ClusterConfig{CA: files.CA, Cert: files.Cert, Key: files.Key}, files.Node)
	if err != nil {
		t.Fatalf("load certificates of %s: %v", files.Node, err)
	}
	return identity
}

// handshake reports what client and server say of each other.
func handshake(t *testing.T, server, client *clusterTLS) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		served <- tls.Server(conn, server.server()).Handshake()
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	secured := tls.Client(conn, client.client(protocolGRPC, certified{}))
	clientErr = secured.Handshake()
	if clientErr != nil {
		conn.Close()
	}
	serverErr = <-served
	return serverErr, clientErr
}

func TestCertificatesLetNodesTalk(t *testing.T) {
	made := makeCertificates(t, t.TempDir(), "n1", "n2")
	n1, n2 := identityOf(t, made[0]), identityOf(t, made[1])
	if serverErr, clientErr := handshake(t, n1, n2); serverErr != nil || clientErr != nil {
		t.Fatalf("handshake of n2 with n1: server says %v, client says %v", serverErr, clientErr)
	}
	stranger := identityOf(t, makeCertificates(t, t.TempDir(), "n2")[0])
	if serverErr, clientErr := handshake(t, n1, stranger); serverErr == nil && clientErr == nil {
		t.Fatal("a node of another authority was let in")
	}
}

func TestCertificateContent(t *testing.T) {
	dir := t.TempDir()
	made := makeCertificates(t, dir, "n1")[0]
	if !made.Made {
		t.Error("Made = false for a new certificate")
	}
	content, err := os.ReadFile(made.Cert)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCertificate(content)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "atoll://atoll/node/n1" {
		t.Errorf("URIs = %v, want atoll://atoll/node/n1", cert.URIs)
	}
	if age := time.Since(cert.NotBefore); age < certificateBackdate || age > certificateBackdate+time.Hour {
		t.Errorf("valid since %s, want an hour", age)
	}
	usages := map[x509.ExtKeyUsage]bool{}
	for _, usage := range cert.ExtKeyUsage {
		usages[usage] = true
	}
	if !usages[x509.ExtKeyUsageClientAuth] || !usages[x509.ExtKeyUsageServerAuth] {
		t.Errorf("extended key usages = %v, want client and server", cert.ExtKeyUsage)
	}
	if cert.IsCA {
		t.Error("a node's certificate may sign others")
	}
	for path, want := range map[string]os.FileMode{
		made.Key: 0o600, filepath.Join(dir, authorityKeyFile): 0o600, made.Cert: 0o644, filepath.Dir(made.Key): 0o700,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s = %o, want %o", path, got, want)
		}
	}
}

func TestCertificatesAreKept(t *testing.T) {
	dir := t.TempDir()
	makeCertificates(t, dir, "n1")
	before := readTree(t, dir)
	again := makeCertificates(t, dir, "n1", "n2")
	if again[0].Made || !again[1].Made {
		t.Errorf("Made = %t for n1 and %t for n2, want false and true", again[0].Made, again[1].Made)
	}
	after := readTree(t, dir)
	for path, content := range before {
		if after[path] != content {
			t.Errorf("%s was changed", path)
		}
	}
	// With all certificates there, the authority's key may be elsewhere.
	if err := os.Remove(filepath.Join(dir, authorityKeyFile)); err != nil {
		t.Fatal(err)
	}
	makeCertificates(t, dir, "n1", "n2")
}

// A crash can leave any prefix of the files in the order in which they are made.
func TestCertificatesAfterCrash(t *testing.T) {
	order := []string{"ca.key", "ca.crt", "n1/ca.crt", "n1/node.key", "n1/node.crt"}
	for done := range order {
		dir := t.TempDir()
		makeCertificates(t, dir, "n1")
		for _, path := range order[done:] {
			if err := os.Remove(filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
		}
		identityOf(t, makeCertificates(t, dir, "n1")[0])
	}
}

func TestCertificatesRefused(t *testing.T) {
	replace := func(path, by string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			other := t.TempDir()
			makeCertificates(t, other, "n1", "n2")
			content, err := os.ReadFile(filepath.Join(other, by))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, path), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(path string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	nothing := func(*testing.T, string) {}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		cfg    CertificatesConfig
		want   string
	}{
		{"no node", nothing, CertificatesConfig{}, "no node named"},
		{"bad node name", nothing, CertificatesConfig{Nodes: []string{"../n1"}}, `"../n1" is not a node name`},
		{"bad cluster name", nothing, CertificatesConfig{Cluster: "a/b", Nodes: []string{"n1"}}, `"a/b" is not a cluster name`},
		{"node twice", nothing, CertificatesConfig{Nodes: []string{"n1", "n1"}}, `"n1" is named twice`},
		{"other cluster", nothing, CertificatesConfig{Cluster: "reef", Nodes: []string{"n1"}}, `authority of cluster "atoll", not of "reef"`},
		{"another authority's key", replace("ca.key", "ca.key"), CertificatesConfig{Nodes: []string{"n9"}}, "is not the key of"},
		{"no authority key", remove("ca.key"), CertificatesConfig{Nodes: []string{"n9"}}, "the authority's key is needed"},
		{"another authority in the node's folder", replace("n1/ca.crt", "n1/ca.crt"), CertificatesConfig{Nodes: []string{"n1"}}, "is another authority"},
		{"another node's certificate", replace("n1/node.crt", "n2/node.crt"), CertificatesConfig{Nodes: []string{"n1"}}, "cluster.cert"},
		{"certificate as authority", replace("ca.crt", "n1/node.crt"), CertificatesConfig{Nodes: []string{"n9"}}, "not an authority's certificate"},
		{"certificate without its key", remove("n1/node.key"), CertificatesConfig{Nodes: []string{"n1"}}, "cluster.key"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Dir = t.TempDir()
			makeCertificates(t, test.cfg.Dir, "n1")
			test.damage(t, test.cfg.Dir)
			before := readTree(t, test.cfg.Dir)
			_, err := MakeCertificates(test.cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error = %v, want one that says %q", err, test.want)
			}
			after := readTree(t, test.cfg.Dir)
			for path, content := range before {
				if after[path] != content {
					t.Errorf("%s was changed", path)
				}
			}
		})
	}
}

func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
