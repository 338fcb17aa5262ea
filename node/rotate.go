package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// The change of the cluster's authority to another one, without a moment in which two
// nodes don't trust each other:
//
//  1. spreading: the new one is put behind the old one, and so trusted by every node that
//     hears of it. The old one signs.
//  2. renewing: once all nodes trust it, it is put in front, and signs. The old one's key
//     is dropped, and every node renews its certificate at once (renew.go).
//  3. settled: once no node has a certificate of the old one any more, that is dropped.
//
// How far it is follows from the record alone, and each step is a compare and swap on its
// revision. So any leader goes on where the last one stopped. A node that is down by the
// records is not waited for: the change may be for the sake of one that was stolen. If it
// comes back too late, it needs a join token.

// rotation is how far a change of the authority is.
type rotation int

const (
	rotationSettled rotation = iota
	rotationSpreading
	rotationRenewing
)

// String is the word for operators.
func (r rotation) String() string { return [...]string{"settled", "spreading", "renewing"}[r] }

func rotationOf(record *atoll.ClusterAuthority) rotation {
	certificates := record.GetCertificates()
	switch {
	case len(certificates) < 2:
		return rotationSettled
	case len(certificates[1].GetKey()) > 0:
		return rotationSpreading
	default:
		return rotationRenewing
	}
}

// rotateInterval is how often the leader looks how far a change of the authority is.
const rotateInterval = time.Second

// holding is what is known of one node's certificate.
type holding struct {
	name string
	// down says that the node is not waited for.
	down bool
	// known says that it has told; the others are what it has told.
	known    bool
	revision uint64
	issuer   []byte
	issued   time.Time
	expires  time.Time
}

// waitsFor says what a node still has to do before the next step; empty for nothing.
func (h holding) waitsFor(record *atoll.ClusterAuthority) string {
	signer := sha256Of(record.GetCertificates()[0].GetDer())
	switch {
	case h.down:
		return ""
	case !h.known:
		return "node " + h.name + " has not answered"
	case h.revision < record.GetRevision():
		return "node " + h.name + " has not heard of it"
	case rotationOf(record) == rotationRenewing && !bytes.Equal(h.issuer, signer[:]):
		return "node " + h.name + " has no certificate by the new authority yet"
	}
	return ""
}

// nextAuthority are the certificates of the next step, and those whom it waits for if it
// is not time; neither if nothing is under way.
func nextAuthority(record *atoll.ClusterAuthority, nodes []holding) (next []*atoll.AuthorityCertificate, waiting []string) {
	state := rotationOf(record)
	if state == rotationSettled {
		return nil, nil
	}
	for _, node := range nodes {
		if reason := node.waitsFor(record); reason != "" {
			waiting = append(waiting, reason)
		}
	}
	if len(waiting) > 0 {
		return nil, waiting
	}
	first, second := record.GetCertificates()[0], record.GetCertificates()[1]
	if state == rotationSpreading {
		return []*atoll.AuthorityCertificate{second, {Der: first.GetDer(), CreatedUnixMs: first.GetCreatedUnixMs()}}, nil
	}
	return []*atoll.AuthorityCertificate{first}, nil
}

// holdings gathers what is known of all members' certificates.
func (p *peers) holdings() (nodes []holding) {
	for _, member := range p.members() {
		h := holding{name: member.Name, down: member.Liveness == atoll.Liveness_LIVENESS_DOWN}
		stats, _, known := p.answer(member.Id)
		if member.Id == p.self {
			stats, known = p.stats(), true
		}
		if known && stats.GetCertificateExpiresUnixMs() > 0 {
			h.known, h.revision, h.issuer = true, stats.GetAuthorityRevision(), stats.GetCertificateIssuer()
			h.issued, h.expires = time.UnixMilli(stats.GetCertificateIssuedUnixMs()).UTC(), time.UnixMilli(stats.GetCertificateExpiresUnixMs()).UTC()
		}
		nodes = append(nodes, h)
	}
	return nodes
}

// watchRotation takes the next step of a change of the authority whenever it is time,
// until ctx ends.
func (l *leadership) watchRotation(ctx context.Context) {
	for pause(ctx, rotateInterval) == nil {
		record := l.store.LocalAuthority()
		next, _ := nextAuthority(record, l.peers.holdings())
		if next == nil {
			continue
		}
		err := l.store.PutAuthority(ctx, record.GetRevision(), next)
		switch {
		case errors.Is(err, metadata.ErrChanged): // another leader was first
		case err != nil && ctx.Err() == nil:
			l.log.Warn().Err(err).Msg("change of the certificate authority does not go on, trying again")
		case err == nil:
			l.log.Info().Stringer("was", rotationOf(record)).Uint64("revision", record.GetRevision()+1).Msg("change of the certificate authority goes on")
		}
	}
}

// AuthorityStatus is how the cluster's certificate authority is, as one node sees it.
type AuthorityStatus struct {
	// State is settled, spreading while the nodes learn to trust a new authority, or
	// renewing while they get certificates by it.
	State    string `json:"state"`
	Revision uint64 `json:"revision"`
	// Authorities are all that are trusted, the one that signs first.
	Authorities []AuthorityInfo `json:"authorities"`
	Nodes       []HoldingInfo   `json:"nodes"`
	// Waiting says what the next step waits for.
	Waiting []string `json:"waiting,omitempty"`
}

// AuthorityInfo is one certificate of the authority.
type AuthorityInfo struct {
	// Fingerprint is the SHA-256 of the certificate, in hex.
	Fingerprint string    `json:"fingerprint"`
	Signs       bool      `json:"signs"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires"`
}

// HoldingInfo is one node's certificate, as far as it is known.
type HoldingInfo struct {
	Node string `json:"node"`
	// Issuer is the fingerprint of who has signed it; empty if that is not known.
	Issuer  string     `json:"issuer,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
	// Down says that the node is down and not waited for.
	Down bool `json:"down,omitempty"`
}

// FetchAuthority asks the node whose data folder is given how the cluster's certificate
// authority is.
func FetchAuthority(ctx context.Context, dataDir string) (*AuthorityStatus, error) {
	return askAuthority(ctx, dataDir, http.MethodGet, "/ca")
}

// RotateAuthority begins to change the cluster's certificate authority to a new one,
// through the node whose data folder is given. The leader goes on with it.
func RotateAuthority(ctx context.Context, dataDir string) (*AuthorityStatus, error) {
	return askAuthority(ctx, dataDir, http.MethodPost, "/ca/rotate")
}

func askAuthority(ctx context.Context, dataDir, method, path string) (*AuthorityStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	status := &AuthorityStatus{}
	return status, askAdmin(ctx, dataDir, method, path, status)
}

func (a *admin) serveAuthority(w http.ResponseWriter, _ *http.Request) {
	status, err := a.authorityStatus()
	answerAdmin(w, status, err)
}

func (a *admin) serveRotateAuthority(w http.ResponseWriter, r *http.Request) {
	if !a.checkAudit(w) {
		return
	}
	fingerprint, err := a.rotateAuthority(r.Context())
	a.auditAdmin(r, "ca rotate", fingerprint, "", err)
	var status *AuthorityStatus
	if err == nil {
		status, err = a.authorityStatus()
	}
	answerAdmin(w, status, err)
}

// rotateAuthority takes the first step, which needs nobody's consent, and returns the
// new authority's fingerprint.
func (a *admin) rotateAuthority(ctx context.Context) (string, error) {
	if err := a.store.CatchUp(ctx); err != nil {
		return "", err
	}
	record := a.store.LocalAuthority()
	authority, err := parseAuthority(record)
	if errors.Is(err, errNoAuthority) {
		return "", refusal(err.Error())
	}
	if err != nil {
		return "", err
	}
	if state := rotationOf(record); state != rotationSettled {
		return "", refusal(fmt.Sprintf("the authority is being changed already (%s): 'atoll ca status' shows what that waits for", state))
	}
	made, err := makeAuthorityRecord(authority.signer().Subject.CommonName)
	if err != nil {
		return "", err
	}
	err = a.store.PutAuthority(ctx, record.GetRevision(), []*atoll.AuthorityCertificate{record.GetCertificates()[0], made})
	if errors.Is(err, metadata.ErrChanged) {
		return "", refusal("somebody else has begun to change the authority at this moment: see 'atoll ca status'")
	}
	if err != nil {
		return "", err
	}
	fingerprint := sha256Of(made.GetDer())
	return hex.EncodeToString(fingerprint[:]), a.store.CatchUp(ctx) // so that the status shows it
}

// authorityStatus is what this node knows; it needs no quorum.
func (a *admin) authorityStatus() (*AuthorityStatus, error) {
	record := a.store.LocalAuthority()
	if record.GetRevision() == 0 {
		return nil, refusal(errNoAuthority.Error())
	}
	nodes := a.peers.holdings()
	status := &AuthorityStatus{State: rotationOf(record).String(), Revision: record.GetRevision()}
	_, status.Waiting = nextAuthority(record, nodes)
	for i, recorded := range record.GetCertificates() {
		certificate, err := x509.ParseCertificate(recorded.GetDer())
		if err != nil {
			return nil, fmt.Errorf("read the cluster's authority: %w", err)
		}
		fingerprint := hashOf(certificate)
		status.Authorities = append(status.Authorities, AuthorityInfo{
			Fingerprint: hex.EncodeToString(fingerprint[:]), Signs: i == 0,
			Created: time.UnixMilli(recorded.GetCreatedUnixMs()).UTC(), Expires: certificate.NotAfter,
		})
	}
	for _, node := range nodes {
		info := HoldingInfo{Node: node.name, Down: node.down, Issuer: hex.EncodeToString(node.issuer)}
		if node.known {
			info.Expires = &node.expires
		}
		status.Nodes = append(status.Nodes, info)
	}
	return status, nil
}
