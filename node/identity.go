package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// openIdentity returns this node's side of the TLS between nodes: from files if the
// operator has made them, or else with what the cluster has made, and the keyring that
// is kept in. A node that has nothing yet founds its cluster, or asks for a certificate
// with its join token, which may take as long as ctx.
func (n *Node) openIdentity(ctx context.Context, folder *dataFolder) (*clusterTLS, *keyring, error) {
	if n.cfg.Cluster.fromFiles() {
		identity, err := loadClusterTLS(n.cfg.Cluster, n.cfg.Name)
		return identity, nil, err
	}
	saved, err := readCredentials(folder)
	if err != nil {
		return nil, nil, err
	}
	if saved.Certificate == "" {
		saved, err = n.firstCredentials(ctx, folder, saved)
	} else {
		saved, err = n.laterCredentials(ctx, folder, saved)
	}
	if err != nil {
		return nil, nil, err
	}
	keys, err := openKeyring(folder, saved)
	if err != nil {
		return nil, nil, err
	}
	return keys.tls, keys, nil
}

// loadIdentity is openIdentity for a node that must have everything already.
func loadIdentity(cfg Config, folder *dataFolder) (*clusterTLS, error) {
	if cfg.Cluster.fromFiles() {
		return loadClusterTLS(cfg.Cluster, cfg.Name)
	}
	saved, err := readCredentials(folder)
	if err != nil {
		return nil, err
	}
	if saved.Certificate == "" {
		return nil, fmt.Errorf("data folder %s has no certificate: give cluster.ca, cluster.cert and cluster.key if the node has had them from files", folder.path)
	}
	return saved.identity(folder)
}

// fromFiles says whether the operator makes the certificates.
func (c *ClusterConfig) fromFiles() bool { return c.CA != "" }

// firstCredentials are for a node that has none.
func (n *Node) firstCredentials(ctx context.Context, folder *dataFolder, saved savedIdentity) (savedIdentity, error) {
	token, err := n.cfg.joinToken()
	if err != nil {
		return saved, err
	}
	if token != nil {
		return n.enroll(ctx, folder, saved, *token, false)
	}
	if !n.cfg.Bootstrap {
		return saved, errors.New("this node has no certificate yet, and nothing to get one by: give it a join token (token, from 'atoll token create' on a node of the cluster) and a node's address (join); " +
			"or bootstrap to form a new cluster of one node; or cluster.ca, cluster.cert and cluster.key, if the certificates are from 'atoll certs'")
	}
	entries, err := os.ReadDir(filepath.Join(folder.path, raftDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return saved, fmt.Errorf("look into data folder: %w", err)
	}
	if folder.identity.ClusterID != "" || len(entries) > 0 {
		return saved, fmt.Errorf("data folder %s has data but no certificate, and bootstrap is for an empty one: give cluster.ca, cluster.cert and cluster.key if the node has had them from files, or else a join token", folder.path)
	}
	for _, address := range n.cfg.Join {
		if address != n.cfg.Cluster.Address && enrolls(ctx, n.dial, address) {
			return saved, fmt.Errorf("bootstrap is to form a new cluster, but a node of one answers at %s, which join names, and this node's data folder is empty: "+
				"to join that cluster give a join token ('atoll token create' there); to form another one, leave that address out of join", address)
		}
	}
	n.log.Info().Msg("making the certificate authority of a new cluster")
	return foundCluster(folder, n.lifetime)
}

// laterCredentials are for a node that has some. A join token is for the first start, and
// does not count any more, but for a node that the others don't take as it is: it was
// away for so long that its certificate expired, or the authority was changed.
func (n *Node) laterCredentials(ctx context.Context, folder *dataFolder, saved savedIdentity) (savedIdentity, error) {
	token, err := n.cfg.joinToken()
	if err != nil || token == nil {
		n.log.Debug().Err(err).Msg("no join token, and none needed")
		return saved, nil
	}
	identity, err := saved.identity(folder)
	if err != nil {
		return saved, err
	}
	certificate := identity.certificate.Load()
	expired := time.Now().After(certificate.Leaf.NotAfter)
	if !expired && (issuedBy(certificate) == token.authority || n.isTaken(ctx, identity)) {
		return saved, nil
	}
	ctx, cancel := context.WithTimeout(ctx, enrollAgainTimeout)
	defer cancel()
	// Without an answer, the others may be down, all of them, and wait for this one.
	next, err := n.enroll(ctx, folder, saved, *token, !expired)
	if err != nil {
		n.log.Warn().Err(err).Msg("no new certificate for the join token: going on with the one that this node has")
		return saved, nil
	}
	return next, nil
}

// issuedBy is the authority that has signed one of the cluster's own certificates.
func issuedBy(certificate *tls.Certificate) (hash authorityHash) {
	if len(certificate.Certificate) > 1 {
		hash = sha256Of(certificate.Certificate[1])
	}
	return hash
}

// isTaken says whether a member takes this node's certificate.
func (n *Node) isTaken(ctx context.Context, identity *clusterTLS) bool {
	pool := newConnPool(identity, n.dial, func() string { return "" }, func(string) certified { return certified{} })
	defer func() { _ = pool.Close() }() // nothing is under way on it
	for _, address := range n.cfg.Join {
		if address == n.cfg.Cluster.Address {
			continue
		}
		if _, err := pool.identify(ctx, address); err == nil {
			return true
		}
	}
	return false
}

// enroll asks the cluster for a certificate, only once if nobody has to answer. The key is on disk before the first
// question: a token that is good for one node is good for one key.
func (n *Node) enroll(ctx context.Context, folder *dataFolder, saved savedIdentity, token joinToken, once bool) (savedIdentity, error) {
	if saved.RequestedKey == "" {
		key, err := newKey()
		if err != nil {
			return saved, err
		}
		encoded, err := keyPEM(key)
		if err != nil {
			return saved, err
		}
		saved.RequestedKey = string(encoded)
		if err := saved.write(folder); err != nil {
			return saved, err
		}
	}
	key, err := parseKey([]byte(saved.RequestedKey))
	if err != nil {
		return saved, fmt.Errorf("read requested_key of %s: %w", credentialsFile, err)
	}
	e := &enrollment{
		token: token, addresses: n.cfg.Join, self: n.cfg.Cluster.Address, clusterID: folder.identity.ClusterID, key: key, dial: n.dial, log: n.log, once: once,
		node: certified{name: folder.identity.Name, id: folder.identity.ID},
	}
	issued, err := e.run(ctx)
	if err != nil {
		return saved, fmt.Errorf("join the cluster with %s: %w", token, err)
	}
	next := saved
	// What the answer says counts, whatever was trusted before, or was to be founded.
	next.Revision, next.AuthorityKey = 0, ""
	if err := next.install(issued, key); err != nil {
		return saved, err
	}
	next.RequestedKey = saved.RequestedKey // if the node does not get to join in time, it may ask again
	identity, err := next.identity(folder)
	if err != nil {
		return saved, fmt.Errorf("join the cluster with %s: %w", token, err)
	}
	if _, err := identity.verify(certificateChain(identity)); err != nil {
		return saved, fmt.Errorf("join the cluster with %s: the certificate that it gave is not good: %w", token, err)
	}
	if err := next.write(folder); err != nil {
		return saved, err
	}
	n.log.Info().Stringer("token", token).Time("expires", identity.certificate.Load().Leaf.NotAfter).Msg("the cluster has given this node its certificate")
	return next, nil
}

// joinToken is the token that the operator has given; nil if none.
func (c *Config) joinToken() (*joinToken, error) {
	text, source := c.Token, "token"
	if c.TokenFile != "" {
		content, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token-file: %w", err)
		}
		text, source = string(content), cmp.Or(c.TokenFile, "token-file")
	}
	if text == "" {
		return nil, nil
	}
	token, err := parseJoinToken(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, err)
	}
	return &token, nil
}
