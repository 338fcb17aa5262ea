package node

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// renewalPoll is how often a node looks whether its certificate is to be renewed.
	renewalPoll = time.Second
	// renewalRetryMin and renewalRetryMax are the pauses after a renewal that failed.
	renewalRetryMin = time.Second
	renewalRetryMax = time.Minute
	// renewalTimeout bounds one question for a certificate.
	renewalTimeout = 10 * time.Second
	// selfRenewalShare is the part of the lifetime that is left when a node which finds
	// nobody to ask signs its certificate itself, with the key in its state. Without
	// that a cluster without a quorum could never have one again.
	selfRenewalShare = 6
)

func sha256Of(der []byte) authorityHash { return sha256.Sum256(der) }

// certificateChain is this node's own certificate.
func certificateChain(t *clusterTLS) []*x509.Certificate {
	return []*x509.Certificate{t.certificate.Load().Leaf}
}

// lifetimeOf is for how long a certificate was issued.
func lifetimeOf(certificate *x509.Certificate) time.Duration {
	return certificate.NotAfter.Sub(certificate.NotBefore.Add(certificateBackdate))
}

// renewalDue is when a certificate is to be renewed: after two thirds of its lifetime,
// and up to a twentieth earlier, so that not all nodes ask at once.
func renewalDue(certificate *x509.Certificate, jitter float64) time.Time {
	lifetime := float64(lifetimeOf(certificate))
	return certificate.NotAfter.Add(-time.Duration(lifetime/3 + jitter*lifetime/20))
}

// renewal keeps this node's certificate good while the node runs.
type renewal struct {
	self  *atoll.Node
	keys  *keyring
	store *metadata.Store
	peers *peers
	// lifetime is that of certificates that this node signs.
	lifetime time.Duration
	log      zerolog.Logger
}

// Run renews until ctx ends.
func (r *renewal) Run(ctx context.Context) error {
	jitter, retry := rand.Float64(), renewalRetryMin
	for {
		wait := renewalPoll
		if reason := r.reason(time.Now(), jitter); reason != "" {
			if err := r.renew(ctx, reason); err == nil {
				jitter, retry = rand.Float64(), renewalRetryMin
			} else if ctx.Err() == nil {
				r.log.Warn().Err(err).Time("expires", r.leaf().NotAfter).Str("reason", reason).Msg("certificate not renewed, trying again")
				wait, retry = retry, min(2*retry, renewalRetryMax)
			}
		}
		if pause(ctx, wait) != nil {
			return nil
		}
	}
}

func (r *renewal) leaf() *x509.Certificate { return r.keys.tls.certificate.Load().Leaf }

// reason says why the certificate is to be renewed now; empty if it is not.
func (r *renewal) reason(now time.Time, jitter float64) string {
	switch lifetime := lifetimeOf(r.leaf()); {
	case now.After(renewalDue(r.leaf(), jitter)):
		return "it expires"
	case lifetime <= enrolledLifetime && r.lifetime > enrolledLifetime:
		return "it was to join by"
	case r.hasOtherIssuer():
		return "another authority signs"
	case r.isBad(): // as after a clock was wrong by years
		return "it is not good"
	}
	return ""
}

// renew gets a certificate for a new key: from another member, or from this node itself
// if there is none, or none answers and time is short.
func (r *renewal) renew(ctx context.Context, reason string) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	request, err := makeRequest(key)
	if err != nil {
		return err
	}
	issued, signedBy, err := r.ask(ctx, request)
	if errors.Is(err, errNoOther) || err != nil && r.isLate() {
		issued, err = signOwn(r.self, r.store.LocalAuthority(), r.lifetime, key.Public())
		signedBy = r.self.Name
	}
	if err != nil {
		return err
	}
	if err := r.keys.renew(issued, key); err != nil {
		return err
	}
	r.log.Info().Str("reason", reason).Str("by", signedBy).Time("expires", r.leaf().NotAfter).Msg("certificate renewed")
	return nil
}

// isLate says that this node can't wait for others to answer: its certificate is not good
// any more by what it knows itself, or soon will not be, or is what a change of the
// authority waits for, and there may be nobody left to ask.
func (r *renewal) isLate() bool {
	if r.isBad() || time.Until(r.leaf().NotAfter) < lifetimeOf(r.leaf())/selfRenewalShare {
		return true
	}
	// A state that is behind what this node trusts has an authority that was changed.
	return r.hasOtherIssuer() && r.store.LocalAuthority().GetRevision() >= r.keys.tls.trust.Load().revision
}

// isBad says that this node itself would not take its certificate.
func (r *renewal) isBad() bool {
	_, fault := r.keys.tls.verify(certificateChain(r.keys.tls))
	return fault != nil
}

// hasOtherIssuer says that another authority signs now than has signed the certificate.
func (r *renewal) hasOtherIssuer() bool {
	authority, err := parseAuthority(r.store.LocalAuthority())
	return err == nil && issuedBy(r.keys.tls.certificate.Load()) != hashOf(authority.signer())
}

// errNoOther means that this node is the only member.
var errNoOther = errors.New("there is no other node to ask")

// ask asks the other members, in any order, until one answers.
func (r *renewal) ask(ctx context.Context, request []byte) (issued *atoll.IssuedCertificate, signedBy string, err error) {
	members := r.peers.members()
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	err = errNoOther
	for _, member := range members {
		if member.Id == r.self.Id {
			continue
		}
		issued, err = r.askOne(ctx, member, request)
		if err == nil {
			return issued, member.Name, nil
		}
		err = fmt.Errorf("ask node %s for a certificate: %w", member.Name, err)
	}
	return nil, "", err
}

func (r *renewal) askOne(ctx context.Context, member *atoll.Node, request []byte) (*atoll.IssuedCertificate, error) {
	ctx, cancel := context.WithTimeout(ctx, renewalTimeout)
	defer cancel()
	conn, err := r.peers.Conn(member.Id)
	if err != nil {
		return nil, err
	}
	answer, err := atoll.NewMembershipClient(conn).Renew(ctx, &atoll.RenewRequest{SigningRequest: request})
	if err != nil {
		return nil, err
	}
	if answer.GetIssued() == nil {
		return nil, errors.New("the answer has no certificate")
	}
	return answer.GetIssued(), nil
}

// signOwn makes this node's certificate by the authority in its own state.
func signOwn(self *atoll.Node, record *atoll.ClusterAuthority, lifetime time.Duration, key any) (*atoll.IssuedCertificate, error) {
	authority, err := parseAuthority(record)
	if err != nil {
		return nil, err
	}
	return authority.issue(certified{name: self.Name, id: self.Id}, lifetime, key)
}

// Renew gives a member another certificate, for the id that it has shown one for.
func (m *membership) Renew(ctx context.Context, request *atoll.RenewRequest) (*atoll.RenewResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	key, err := requestedKey(request.GetSigningRequest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	nodes, err := m.store.Nodes(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	for _, node := range nodes {
		if node.Id != caller.id || node.Name != caller.name || node.State == atoll.NodeState_NODE_STATE_REMOVED {
			continue
		}
		authority, err := parseAuthority(m.store.LocalAuthority())
		if err != nil {
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		issued, err := authority.issue(caller, m.lifetime, key)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		return &atoll.RenewResponse{Issued: issued}, nil
	}
	return nil, status.Errorf(codes.PermissionDenied, "node %s with the id %s is not a member of the cluster", caller.name, caller.id)
}

// renewExpired makes a certificate for a node that was off for so long that its own is
// not good any more, by the authority that it has in its state, if that is still the
// one: the others decide. All nodes of a cluster may have been off. Without a state, or
// once removed, there is nothing to make it by.
func (p *parts) renewExpired(lifetime time.Duration) error {
	own := certificateChain(p.keys.tls)
	_, fault := p.keys.tls.verify(own)
	if fault == nil {
		return nil
	}
	if !wasRemoved(p.machine.Nodes(), p.self.Id) {
		key, err := newKey()
		if err != nil {
			return err
		}
		issued, err := signOwn(p.self, p.machine.Authority(), lifetime, key.Public())
		if err == nil {
			p.log.Warn().Err(fault).Msg("this node's certificate is not good any more: it makes itself another, by the authority that it knows")
			return p.keys.renew(issued, key)
		}
	}
	return fmt.Errorf("this node's certificate is not good any more, and it was away for too long to make another: "+
		"start it with a new join token ('atoll token create --member NAME' on another node), which keeps its data: %w", fault)
}

// describe completes a heartbeat with what the leader has to know of this node's
// certificate.
func (k *keyring) describe(stats *atoll.HeartbeatResponse) {
	certificate := k.tls.certificate.Load()
	issuer := issuedBy(certificate)
	stats.AuthorityRevision, stats.CertificateIssuer = k.tls.trust.Load().revision, issuer[:]
	stats.CertificateExpiresUnixMs = certificate.Leaf.NotAfter.UnixMilli()
	stats.CertificateIssuedUnixMs = certificate.Leaf.NotBefore.Add(certificateBackdate).UnixMilli()
}
