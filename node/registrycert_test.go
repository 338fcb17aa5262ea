package node

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
)

// TestRegistryCertificate: the certificate is of the authority and for all hosts, stays
// as long as it will do, and the authority stays in any case.
func TestRegistryCertificate(t *testing.T) {
	dir := t.TempDir()
	verify := func(hosts ...string) (authority, serial string) {
		t.Helper()
		files, err := MakeRegistryCertificate(dir, hosts)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(files.CA)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(content)
		for _, host := range hosts {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
		if bytes.Equal(pair.Leaf.RawSubject, pair.Leaf.RawIssuer) || len(pair.Leaf.AuthorityKeyId) == 0 {
			t.Error("OpenSSL will take it for one that has signed itself")
		}
		if info, err := os.Stat(files.Key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key's mode: %v, %v", info, err)
		}
		return string(content), pair.Leaf.SerialNumber.String()
	}
	authority, first := verify("127.0.0.1", "localhost")
	if same, again := verify("localhost"); again != first || same != authority {
		t.Error("it was made anew without need")
	}
	if same, other := verify("127.0.0.1", "registry.example", "::1"); other == first || same != authority {
		t.Error("for another host: the same certificate, or another authority")
	}
	if err := os.WriteFile(dir+"/"+registryCertFile, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	verify("127.0.0.1")
}
