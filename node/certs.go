package node

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Names inside a folder of certificates: the authority on top, and for each
// node a folder that has all it needs and can be copied to its machine. The
// authority's key stays behind: who has it can make nodes.
const (
	authorityCertFile = "ca.crt"
	authorityKeyFile  = "ca.key"
	nodeCertFile      = "node.crt"
	nodeKeyFile       = "node.key"
)

// DefaultClusterName is the cluster's name in certificates unless told
// otherwise. What keeps clusters apart is the authority, the name is for people.
const DefaultClusterName = "atoll"

const (
	// certificateBackdate makes new certificates valid on machines whose clock is
	// a little behind.
	certificateBackdate = time.Hour
	authorityLifetime   = 20 * 365 * 24 * time.Hour
	nodeLifetime        = 10 * 365 * 24 * time.Hour
)

// CertificatesConfig says which certificates there should be.
type CertificatesConfig struct {
	// Dir is the folder of certificates. It is made when absent.
	Dir string
	// Cluster is the cluster's name. Default: that of the folder's authority, or
	// DefaultClusterName if there is none yet.
	Cluster string
	// Nodes are the names of the nodes.
	Nodes []string
}

// NodeCertificate is one node's share of the folder.
type NodeCertificate struct {
	Node string
	// CA, Cert and Key are the files, as cluster.ca, cluster.cert and cluster.key
	// want them.
	CA, Cert, Key string
	// Made is false if the certificate was there already.
	Made bool
}

// MakeCertificates makes the cluster's certificate authority and a certificate
// with its key for each node, as far as they are missing, and checks those that
// are there: that they belong to this authority, cluster and node, and are still
// valid. No file is ever overwritten, so it can be repeated, also after a crash.
func MakeCertificates(cfg CertificatesConfig) ([]NodeCertificate, error) {
	if err := checkNames(cfg); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of certificates: %w", err)
	}
	authority, err := openAuthority(cfg)
	if err != nil {
		return nil, err
	}
	made := make([]NodeCertificate, 0, len(cfg.Nodes))
	for _, name := range cfg.Nodes {
		certificate, err := authority.nodeCertificate(name)
		if err != nil {
			return nil, fmt.Errorf("make certificate of node %s: %w", name, err)
		}
		made = append(made, certificate)
	}
	return made, nil
}

func checkNames(cfg CertificatesConfig) error {
	var faults []error
	if cfg.Dir == "" {
		faults = append(faults, errors.New("no folder given"))
	}
	if cfg.Cluster != "" && !nodeName.MatchString(cfg.Cluster) {
		faults = append(faults, fmt.Errorf("%q is not a cluster name: lower-case letters, digits and dashes, at most 63", cfg.Cluster))
	}
	if len(cfg.Nodes) == 0 {
		faults = append(faults, errors.New("no node named"))
	}
	for i, name := range cfg.Nodes {
		if !nodeName.MatchString(name) {
			faults = append(faults, fmt.Errorf("%q is not a node name: lower-case letters, digits and dashes, at most 63, as in a host name", name))
		}
		if slices.Contains(cfg.Nodes[:i], name) {
			faults = append(faults, fmt.Errorf("node %q is named twice", name))
		}
	}
	return errors.Join(faults...)
}

// certificateAuthority signs what is missing in one folder.
type certificateAuthority struct {
	dir     string
	cluster string
	cert    *x509.Certificate
	certPEM []byte
}

// openAuthority reads the folder's authority or makes it. Its key is written
// before its certificate, so that a crash in between leaves a key to go on with.
func openAuthority(cfg CertificatesConfig) (*certificateAuthority, error) {
	certPath := filepath.Join(cfg.Dir, authorityCertFile)
	certPEM, err := os.ReadFile(certPath)
	if errors.Is(err, fs.ErrNotExist) {
		certPEM, err = makeAuthority(cfg, certPath)
	}
	if err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", certPath, err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("read %s: it is not an authority's certificate", certPath)
	}
	if now := time.Now(); now.After(cert.NotAfter) {
		return nil, fmt.Errorf("read %s: it has expired on %s; a new authority means a new folder", certPath, cert.NotAfter.Format(time.DateOnly))
	}
	name := cert.Subject.CommonName
	if cfg.Cluster != "" && cfg.Cluster != name {
		return nil, fmt.Errorf("read %s: it is the authority of cluster %q, not of %q", certPath, name, cfg.Cluster)
	}
	return &certificateAuthority{dir: cfg.Dir, cluster: name, cert: cert, certPEM: certPEM}, nil
}

func makeAuthority(cfg CertificatesConfig, certPath string) ([]byte, error) {
	key, err := ensureKey(filepath.Join(cfg.Dir, authorityKeyFile))
	if err != nil {
		return nil, err
	}
	name := cfg.Cluster
	if name == "" {
		name = DefaultClusterName
	}
	der, err := signAuthority(name, key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", certPath, err)
	}
	content := certificatePEM(der)
	return content, createFile(certPath, content, 0o644)
}

// nodeCertificate completes a node's folder and checks it.
func (a *certificateAuthority) nodeCertificate(name string) (NodeCertificate, error) {
	dir := filepath.Join(a.dir, name)
	files := NodeCertificate{
		Node: name,
		CA:   filepath.Join(dir, authorityCertFile),
		Cert: filepath.Join(dir, nodeCertFile),
		Key:  filepath.Join(dir, nodeKeyFile),
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return files, err
	}
	if err := a.ensureCopy(files.CA); err != nil {
		return files, err
	}
	if _, err := os.Stat(files.Cert); errors.Is(err, fs.ErrNotExist) {
		if err := a.sign(name, files); err != nil {
			return files, err
		}
		files.Made = true
	}
	// The same checks as when the node starts.
	identity, err := loadClusterTLS(ClusterConfig{CA: files.CA, Cert: files.Cert, Key: files.Key}, name)
	if err != nil {
		return files, err
	}
	if identity.clusterName != a.cluster {
		return files, fmt.Errorf("%s was made for cluster %q, this is %q", files.Cert, identity.clusterName, a.cluster)
	}
	return files, nil
}

// ensureCopy puts the authority's certificate into a node's folder.
func (a *certificateAuthority) ensureCopy(path string) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createFile(path, a.certPEM, 0o644)
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(content, a.certPEM) {
		return fmt.Errorf("%s is another authority than %s", path, filepath.Join(a.dir, authorityCertFile))
	}
	return nil
}

// sign makes the node's certificate, and its key unless there is one. Only here
// is the authority's key needed, so that it may be kept elsewhere otherwise.
func (a *certificateAuthority) sign(name string, files NodeCertificate) error {
	authorityKeyPath := filepath.Join(a.dir, authorityKeyFile)
	authorityKey, err := readKey(authorityKeyPath)
	if err != nil {
		return fmt.Errorf("the authority's key is needed to sign: %w", err)
	}
	if !authorityKey.PublicKey.Equal(a.cert.PublicKey) {
		return fmt.Errorf("%s is not the key of %s", authorityKeyPath, authorityCertFile)
	}
	key, err := ensureKey(files.Key)
	if err != nil {
		return err
	}
	der, err := signNode(certified{cluster: a.cluster, name: name}, nodeLifetime, key.Public(), a.cert, authorityKey)
	if err != nil {
		return fmt.Errorf("sign %s: %w", files.Cert, err)
	}
	return createFile(files.Cert, certificatePEM(der), 0o644)
}

// signNode makes a node's certificate, which does not outlive its authority's.
func signNode(node certified, lifetime time.Duration, key any, authority *x509.Certificate, authorityKey *ecdsa.PrivateKey) ([]byte, error) {
	template, err := certificateTemplate(node.name, lifetime)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(authority.NotAfter) {
		template.NotAfter = authority.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = []string{node.name}
	template.URIs = nodeURIs(node)
	return x509.CreateCertificate(rand.Reader, template, authority, key, authorityKey)
}

// signAuthority makes the certificate of an authority with a key.
func signAuthority(cluster string, key *ecdsa.PrivateKey) ([]byte, error) {
	template, err := certificateTemplate(cluster, authorityLifetime)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.MaxPathLenZero = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

func certificateTemplate(name string, lifetime time.Duration) (*x509.Certificate, error) {
	// RFC 5280 4.1.2.2: positive, at most 20 octets.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("choose serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{Organization: []string{"atoll"}, CommonName: name},
		NotBefore:    now.Add(-certificateBackdate),
		NotAfter:     now.Add(lifetime),
	}, nil
}

// ensureKey reads the private key in a file, or makes one there.
func ensureKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	content, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return key, createFile(path, content, 0o600)
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(content)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

// keyPEM and parseKey write and read a private key.
func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(content []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no private key in PEM form")
	}
	return parseKeyDER(block.Bytes)
}

func parseKeyDER(der []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("it is not an ECDSA key")
	}
	return key, nil
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// parseCertificates reads all certificates of a file, at least one.
func parseCertificates(content []byte) (certificates []*x509.Certificate, err error) {
	for {
		block, rest := pem.Decode(content)
		if block == nil {
			break
		}
		content = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, certificate)
	}
	if len(certificates) == 0 {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return certificates, nil
}

func parseCertificate(content []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return x509.ParseCertificate(block.Bytes)
}

// createFile makes a file that must not exist yet. It appears whole or not at
// all: link(2), unlike rename(2), never replaces.
func createFile(path string, content []byte, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create %s: %w", path, err)
		}
	}()
	temporary, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.Write(content)
	err = errors.Join(err, temporary.Chmod(mode), temporary.Sync(), temporary.Close())
	if err != nil {
		return err
	}
	if err := os.Link(temporary.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
