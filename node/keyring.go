package node

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

// credentialsFile is where a node keeps what the cluster has made for it, in its first
// data folder. It is one file, so that key, certificate and trust change together.
const credentialsFile = "certificate.json"

// credentialsFormat is the version of certificate.json.
const credentialsFormat = 1

// savedIdentity is the content of certificate.json; keys and certificates in PEM form.
// Secret: they must not be printed.
type savedIdentity struct {
	Format int `json:"format"`
	// Revision is that of the authority that Trusted is of.
	Revision uint64 `json:"revision"`
	Trusted  string `json:"trusted,omitempty"`
	// Certificate is the node's, and behind it that of the authority that has signed it;
	// empty until the node has one.
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
	// RequestedKey is the key for which a certificate is asked with a join token. It is
	// there before the first question, since a token is good for one key, until the node
	// has a certificate as a member.
	RequestedKey string `json:"requested_key,omitempty"`
	// AuthorityKey is the authority's own, on the node that has made it, until the state
	// of the cluster has it.
	AuthorityKey string `json:"authority_key,omitempty"`
}

// readCredentials returns what is in the folder; nothing if there are none yet.
func readCredentials(folder *dataFolder) (savedIdentity, error) {
	path := filepath.Join(folder.path, credentialsFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return savedIdentity{Format: credentialsFormat}, nil
	}
	if err != nil {
		return savedIdentity{}, fmt.Errorf("read %s: %w", path, err)
	}
	var c savedIdentity
	if err := json.Unmarshal(content, &c); err != nil {
		// The error of encoding/json quotes no more than a character.
		return savedIdentity{}, fmt.Errorf("read %s: it is damaged: %w: restore it, or move it away and start the node with a new join token", path, err)
	}
	if c.Format != credentialsFormat {
		return savedIdentity{}, fmt.Errorf("%s has format %d, this atoll knows format %d: use the version that wrote it", path, c.Format, credentialsFormat)
	}
	return c, nil
}

func (c savedIdentity) write(folder *dataFolder) error {
	content, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", credentialsFile, err)
	}
	return writeFileDurably(filepath.Join(folder.path, credentialsFile), append(content, '\n'))
}

// install puts an issued certificate into the credentials.
func (c *savedIdentity) install(issued *atoll.IssuedCertificate, key *ecdsa.PrivateKey) error {
	encoded, err := keyPEM(key)
	if err != nil {
		return err
	}
	c.Key, c.RequestedKey, c.Certificate = string(encoded), "", ""
	for _, der := range issued.GetChain() {
		c.Certificate += string(certificatePEM(der))
	}
	if issued.GetRevision() >= c.Revision {
		c.trust(issued.GetRevision(), issued.GetTrusted())
	}
	return nil
}

func (c *savedIdentity) trust(revision uint64, trusted [][]byte) {
	c.Revision, c.Trusted = revision, ""
	for _, der := range trusted {
		c.Trusted += string(certificatePEM(der))
	}
}

// identity is what is made of credentials that are complete, for the node that the
// folder belongs to.
func (c savedIdentity) identity(folder *dataFolder) (*clusterTLS, error) {
	path := filepath.Join(folder.path, credentialsFile)
	authorities, err := parseCertificates([]byte(c.Trusted))
	if err != nil {
		return nil, fmt.Errorf("read %s: trusted authorities: %w", path, err)
	}
	certificate, err := tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key))
	if err != nil {
		return nil, fmt.Errorf("read %s: certificate and key: %w", path, err)
	}
	own, err := certifiedNode(certificate.Leaf)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if own.id != folder.identity.ID || own.name != folder.identity.Name {
		return nil, fmt.Errorf("%s holds the certificate of node %s with the id %s, and the data folder belongs to node %s with the id %s: "+
			"restore the right file, or move this one away and start the node with a new join token", path, own.name, own.id, folder.identity.Name, folder.identity.ID)
	}
	t := &clusterTLS{clusterName: own.cluster, bound: true}
	t.certificate.Store(&certificate)
	t.trust.Store(newTrust(c.Revision, authorities))
	return t, nil
}

// foundCluster makes the credentials of a cluster's first node: an authority, and a
// certificate by it. All of it is written at once, so that a crash leaves all or nothing.
func foundCluster(folder *dataFolder, lifetime time.Duration) (savedIdentity, error) {
	record, err := makeAuthorityRecord(DefaultClusterName)
	if err != nil {
		return savedIdentity{}, err
	}
	made, err := parseAuthority(&atoll.ClusterAuthority{Revision: 1, Certificates: []*atoll.AuthorityCertificate{record}})
	if err != nil {
		return savedIdentity{}, err
	}
	key, err := newKey()
	if err != nil {
		return savedIdentity{}, err
	}
	issued, err := made.issue(certified{name: folder.identity.Name, id: folder.identity.ID}, lifetime, key.Public())
	if err != nil {
		return savedIdentity{}, err
	}
	c := savedIdentity{Format: credentialsFormat}
	if err := c.install(issued, key); err != nil {
		return savedIdentity{}, err
	}
	authorityKey, err := keyPEM(made.key)
	if err != nil {
		return savedIdentity{}, err
	}
	c.AuthorityKey = string(authorityKey)
	return c, c.write(folder)
}

// keyring holds a node's credentials while it runs, and keeps file and TLS in step.
type keyring struct {
	folder *dataFolder
	tls    *clusterTLS

	mu    sync.Mutex // guards saved
	saved savedIdentity
}

func openKeyring(folder *dataFolder, saved savedIdentity) (*keyring, error) {
	identity, err := saved.identity(folder)
	if err != nil {
		return nil, err
	}
	return &keyring{folder: folder, tls: identity, saved: saved}, nil
}

// adopt trusts the authority that the state has, if it is newer than what is trusted.
// It is trusted from the call on, whether or not the file could be written: the state
// is there as well.
func (k *keyring) adopt(record *atoll.ClusterAuthority) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if record.GetRevision() <= k.saved.Revision {
		return nil
	}
	var trusted [][]byte
	var authorities []*x509.Certificate
	for _, recorded := range record.GetCertificates() {
		certificate, err := x509.ParseCertificate(recorded.GetDer())
		if err != nil {
			return fmt.Errorf("read the cluster's authority, revision %d: %w", record.GetRevision(), err)
		}
		trusted, authorities = append(trusted, certificate.Raw), append(authorities, certificate)
	}
	k.tls.trust.Store(newTrust(record.GetRevision(), authorities))
	next := k.saved
	next.trust(record.GetRevision(), trusted)
	if err := next.write(k.folder); err != nil {
		return err
	}
	k.saved = next
	return nil
}

// renew puts a certificate in the place of the present one, for all handshakes to come.
// It is durable first.
func (k *keyring) renew(issued *atoll.IssuedCertificate, key *ecdsa.PrivateKey) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := k.saved
	if err := next.install(issued, key); err != nil {
		return err
	}
	identity, err := next.identity(k.folder)
	if err != nil {
		return err
	}
	if _, err := identity.verify([]*x509.Certificate{identity.certificate.Load().Leaf}); err != nil {
		return fmt.Errorf("the new certificate is not good: %w", err)
	}
	if err := next.write(k.folder); err != nil {
		return err
	}
	k.saved = next
	k.tls.trust.Store(identity.trust.Load())
	k.tls.certificate.Store(identity.certificate.Load())
	return nil
}

// founded is the authority that this node has made and that the state does not have yet;
// nil if there is none.
func (k *keyring) founded() (*atoll.AuthorityCertificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.saved.AuthorityKey == "" {
		return nil, nil
	}
	key, err := parseKey([]byte(k.saved.AuthorityKey))
	if err != nil {
		return nil, fmt.Errorf("read authority_key of %s: %w", credentialsFile, err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	certificate := k.tls.trust.Load().authorities[0]
	return &atoll.AuthorityCertificate{Der: certificate.Raw, Key: encoded, CreatedUnixMs: certificate.NotBefore.Add(certificateBackdate).UnixMilli()}, nil
}

// forgetFounded drops the authority's key from the file, now that the state has it.
func (k *keyring) forgetFounded() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.saved.AuthorityKey == "" {
		return nil
	}
	next := k.saved
	next.AuthorityKey = ""
	if err := next.write(k.folder); err != nil {
		return err
	}
	k.saved = next
	return nil
}
