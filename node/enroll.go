package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// How a node gets its first certificate. It connects to the cluster port of any member,
// by a protocol of its own and without a certificate. The server shows its certificate
// with that of the authority behind it, and only if that one is the authority which the
// token names does the node say anything: the token's secret, who it is, and a signing
// request for a key that never leaves it. The answer is the certificate. One question,
// one answer, and the connection ends.

const (
	// maxEnrollBytes bounds a message in either direction.
	maxEnrollBytes = 64 << 10
	// enrollTimeout bounds an enrolment as the server sees it, the election that it may
	// have to wait for included; enrollAskTimeout as the node sees it.
	enrollTimeout    = 15 * time.Second
	enrollAskTimeout = 20 * time.Second
	// enrollInterval is the pause between two rounds of asking.
	enrollInterval = time.Second
	// enrollAgainTimeout is for how long a node that has a certificate already tries to
	// get another with a token, before it starts with the one that it has.
	enrollAgainTimeout = 30 * time.Second
	// strangePatience is for how long all that answer may be of another authority than
	// the token's: a new one may be taking over meanwhile.
	strangePatience = 20 * time.Second
	// maxEnrollments bounds how many are answered at a time; others are cut off, and ask
	// again. Who has not asked yet counts as a handshake, with the same bounds.
	maxEnrollments = 16
	// A host may be wrong so often at once, and then so often a second. The secret can't be
	// guessed; this is for whoever tries all the same.
	wrongBurst     = 10
	wrongPerSecond = 0.2
	// maxWrongHosts bounds how many hosts that were wrong are remembered.
	maxWrongHosts = 1024
)

// errStranger means that a server is not of the cluster that the token is for. It has not
// been told the secret.
var errStranger = errors.New("the node there is not of the authority that the join token is for: the address is wrong, or somebody has come in between, " +
	"or the authority was changed since the token was made, and a new token is needed ('atoll token create'). The token's secret was not sent")

// enrollment is a node's way to a certificate by a join token.
type enrollment struct {
	token joinToken
	// addresses are those of members, the node's own may be among them.
	addresses []string
	self      string
	node      certified
	// clusterID is that of the data folder; empty for a new one.
	clusterID string
	key       *ecdsa.PrivateKey
	// once says that one round of asking is enough.
	once bool
	dial Dialer
	log  zerolog.Logger
}

// errRefused means that the cluster does not let the node in, and that asking again is
// pointless.
var errRefused = errors.New("the cluster does not take the join token")

// run asks until the node has its certificate. It fails with ctx, or with errRefused or
// errStranger.
func (e *enrollment) run(ctx context.Context) (*atoll.IssuedCertificate, error) {
	began := time.Now()
	nextLog := began.Add(2 * time.Second)
	for {
		issued, err := e.askAll(ctx)
		if err == nil || e.once || errors.Is(err, errRefused) || errors.Is(err, errStranger) && time.Since(began) > strangePatience {
			return issued, err
		}
		if time.Now().After(nextLog) {
			nextLog = time.Now().Add(waitingLogInterval)
			e.log.Warn().Err(err).Stringer("token", e.token).Msg("no certificate from the cluster yet, asking again")
		}
		if err := pause(ctx, enrollInterval); err != nil {
			return nil, err
		}
	}
}

// askAll asks one node after the other. The error is errStranger if all that answered
// were strangers.
func (e *enrollment) askAll(ctx context.Context) (*atoll.IssuedCertificate, error) {
	var faults []error
	strangers := 0
	for _, address := range e.addresses {
		if address == e.self {
			continue
		}
		issued, err := e.ask(ctx, address)
		if err == nil {
			return issued, nil
		}
		err = fmt.Errorf("ask for a certificate at %s: %w", address, err)
		if errors.Is(err, errRefused) {
			return nil, err
		}
		if errors.Is(err, errStranger) {
			strangers++
		}
		faults = append(faults, err)
	}
	if len(faults) == 0 {
		return nil, fmt.Errorf("%w: join names no other node: give the cluster address of one that is a member", errRefused)
	}
	if strangers < len(faults) {
		faults = slices.DeleteFunc(faults, func(err error) bool { return errors.Is(err, errStranger) })
	}
	return nil, errors.Join(faults...)
}

// ask puts the question to one node. Nothing secret is written before the handshake is
// over, and with it the check of whose certificate the server has.
func (e *enrollment) ask(ctx context.Context, address string) (*atoll.IssuedCertificate, error) {
	ctx, cancel := context.WithTimeout(ctx, enrollAskTimeout)
	defer cancel()
	request, err := makeRequest(e.key)
	if err != nil {
		return nil, err
	}
	tcp, err := e.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer tcp.Close()
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	defer stop()
	conn := tls.Client(tcp, enrollingTLS(e.token.authority))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol != protocolEnroll {
		return nil, errStranger
	}
	question := &atoll.EnrollRequest{
		TokenId: e.token.id, Secret: e.token.secret, NodeId: e.node.id, NodeName: e.node.name, SigningRequest: request, ClusterId: e.clusterID,
	}
	if err := writeMessage(conn, question); err != nil {
		return nil, err
	}
	answer := &atoll.EnrollResponse{}
	if err := readMessage(conn, answer); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	switch {
	case answer.GetIssued() != nil:
		return answer.GetIssued(), nil
	case answer.GetFinal():
		return nil, fmt.Errorf("%w: %s", errRefused, answer.GetRefusal())
	default:
		return nil, errors.New(answer.GetRefusal())
	}
}

// enrollingTLS accepts a server only if it is a node whose certificate was signed by the
// authority with that hash.
func enrollingTLS(authority authorityHash) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true, // VerifyConnection does it, by the authority's hash
		NextProtos:             []string{protocolEnroll},
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			chain := state.PeerCertificates
			at := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return hashOf(c) == authority })
			if at < 1 {
				return errStranger
			}
			roots := x509.NewCertPool()
			roots.AddCert(chain[at])
			if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return fmt.Errorf("%w: %w", errStranger, err)
			}
			if _, err := certifiedNode(chain[0]); err != nil {
				return fmt.Errorf("%w: %w", errStranger, err)
			}
			return nil
		},
	}
}

// enrolls tells whether a node of some cluster answers at an address.
func enrolls(ctx context.Context, dial Dialer, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	tcp, err := dial(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer tcp.Close()
	conn := tls.Client(tcp, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{protocolEnroll}}) // it is told nothing
	return conn.HandshakeContext(ctx) == nil && conn.ConnectionState().NegotiatedProtocol == protocolEnroll
}

// writeMessage writes a message behind its length.
func writeMessage(w io.Writer, m pb.Message) error {
	encoded, err := pb.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(encoded) > maxEnrollBytes {
		return fmt.Errorf("message of %d bytes is longer than %d", len(encoded), maxEnrollBytes)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(encoded))), encoded...))
	return err
}

// readMessage reads a message that writeMessage has written. What comes decides how much
// memory is taken, not what is announced.
func readMessage(r io.Reader, m pb.Message) error {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > maxEnrollBytes {
		return fmt.Errorf("message of %d bytes is longer than %d", size, maxEnrollBytes)
	}
	encoded, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return err
	}
	if len(encoded) < int(size) {
		return io.ErrUnexpectedEOF
	}
	return pb.Unmarshal(encoded, m)
}

// enroller answers nodes that want their first certificate.
type enroller struct {
	store *metadata.Store
	// clusterID is parts.clusterID.
	clusterID func() string
	lifetime  time.Duration
	log       zerolog.Logger

	mu sync.Mutex // guards wrong
	// wrong bounds how often a host may be wrong.
	wrong map[netip.Addr]*rate.Limiter
}

// serve answers one question. begin says whether there is room for it, once it is there.
func (e *enroller) serve(conn net.Conn, begin func() bool) {
	defer conn.Close()
	host := hostOf(conn)
	if !e.mayAsk(host) || conn.SetDeadline(time.Now().Add(handshakeTimeout)) != nil {
		return
	}
	request := &atoll.EnrollRequest{}
	if err := readMessage(conn, request); err != nil {
		e.log.Debug().Err(err).Stringer("host", host).Msg("no question from a node that wants a certificate")
		return
	}
	if !begin() || conn.SetDeadline(time.Now().Add(enrollTimeout)) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), enrollTimeout)
	defer cancel()
	answer := e.answer(ctx, host, request)
	if err := writeMessage(conn, answer); err != nil {
		e.log.Info().Err(err).Str("name", printable(request.GetNodeName())).Msg("node did not get its certificate: it asks again")
	}
}

func (e *enroller) answer(ctx context.Context, host netip.Addr, request *atoll.EnrollRequest) *atoll.EnrollResponse {
	issued, err := e.enroll(ctx, host, request)
	if err == nil {
		e.log.Info().Str("name", request.GetNodeName()).Str("id", request.GetNodeId()).Str("token", request.GetTokenId()).Stringer("host", host).Msg("node enrolled")
		return &atoll.EnrollResponse{Issued: issued}
	}
	var final finalRefusal
	isFinal := errors.As(err, &final)
	e.log.Warn().Err(err).Str("token", printable(request.GetTokenId())).Stringer("host", host).Bool("final", isFinal).Msg("node not enrolled")
	if isFinal {
		return &atoll.EnrollResponse{Refusal: final.Error(), Final: true}
	}
	// What is wrong here is not for a stranger to know.
	return &atoll.EnrollResponse{Refusal: "the cluster can't answer now, ask again"}
}

// finalRefusal is why a node is not let in, whenever it asks.
type finalRefusal string

func (r finalRefusal) Error() string { return string(r) }

// enroll decides. Whoever does not know the secret learns nothing but that.
func (e *enroller) enroll(ctx context.Context, host netip.Addr, request *atoll.EnrollRequest) (*atoll.IssuedCertificate, error) {
	sum := sha256.Sum256(request.GetSecret())
	known, err := e.store.KnowsJoinToken(ctx, request.GetTokenId(), sum[:])
	if err != nil {
		return nil, err
	}
	if !known {
		e.wasWrong(host)
		return nil, finalRefusal("the cluster knows no such join token: it was revoked, or expired long ago, or it is of another cluster: make a new one with 'atoll token create'")
	}
	node := certified{name: request.GetNodeName(), id: request.GetNodeId()}
	if !nodeName.MatchString(node.name) || !isNodeID(node.id) {
		return nil, finalRefusal(fmt.Sprintf("%q with the id %q is no node", printable(node.name), printable(node.id)))
	}
	key, err := requestedKey(request.GetSigningRequest())
	if err != nil {
		return nil, finalRefusal(err.Error())
	}
	if err := e.checkFolder(ctx, node, request.GetClusterId()); err != nil {
		return nil, err
	}
	encoded, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	keySum := sha256.Sum256(encoded)
	err = e.store.RedeemJoinToken(ctx, request.GetTokenId(), sum[:], &atoll.JoinTokenUse{NodeId: node.id, NodeName: node.name, KeySha256: keySum[:]})
	switch {
	case errors.Is(err, metadata.ErrNodeRemoved):
		return nil, finalRefusal(ErrRemoved.Error())
	case errors.Is(err, metadata.ErrJoinToken), errors.Is(err, metadata.ErrNodeNameTaken), errors.Is(err, metadata.ErrInvalid):
		return nil, finalRefusal(err.Error() + ": make a new one with " + e.remedy(node))
	case err != nil:
		return nil, err
	}
	authority, err := parseAuthority(e.store.LocalAuthority())
	if err != nil {
		return nil, err
	}
	return authority.issue(node, min(e.lifetime, enrolledLifetime), key)
}

// remedy is the command that makes a token for a node.
func (e *enroller) remedy(node certified) string {
	if slices.ContainsFunc(e.store.LocalNodes(), func(n *atoll.Node) bool { return n.Id == node.id }) {
		return "'atoll token create --member " + node.name + "'"
	}
	return "'atoll token create'"
}

// checkFolder refuses a node whose data is another cluster's, or that has data of this
// one and is not known here: its records are lost, and it may not act as if they were not.
// One that has data of the cluster that this one was recovered from gets a certificate, if
// it is known: it needs one to find out, and to rejoin.
func (e *enroller) checkFolder(ctx context.Context, node certified, folderOf string) error {
	own := e.clusterID()
	if folderOf == "" || own == "" {
		return nil
	}
	if folderOf != own && (lineage{own, e.store.Recoveries()}).parting(folderOf) == nil {
		return finalRefusal(fmt.Sprintf("the joining node's data belongs to cluster %s, this is cluster %s: start it on an empty data folder to join as a new node", folderOf, own))
	}
	nodes, err := e.store.Nodes(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(nodes, func(n *atoll.Node) bool { return n.Id == node.id }) {
		return finalRefusal(fmt.Sprintf("the cluster has no node with the id %s, which the data folder has: start node %s on an empty data folder to join as a new node", node.id, node.name))
	}
	return nil
}

// mayAsk says whether a host was not wrong too often.
func (e *enroller) mayAsk(host netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	limit := e.wrong[host]
	return limit == nil || limit.Tokens() >= 1
}

// wasWrong takes down that a host has shown a wrong secret.
func (e *enroller) wasWrong(host netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wrong[host] == nil {
		if len(e.wrong) >= maxWrongHosts {
			clear(e.wrong) // rather than to let no new host in
		}
		e.wrong[host] = rate.NewLimiter(wrongPerSecond, wrongBurst)
	}
	e.wrong[host].Allow()
}

// hostOf is where a connection comes from, as far as limits go.
func hostOf(conn net.Conn) netip.Addr {
	address, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	host := address.Addr().Unmap().WithZone("")
	if host.Is6() { // one machine has as many addresses as it likes there
		prefix, err := host.Prefix(64)
		if err != nil {
			return host
		}
		return prefix.Addr()
	}
	return host
}

// printable keeps what a stranger has sent short enough for a log.
func printable(text string) string {
	const limit = 64
	if len(text) > limit {
		return text[:limit] + "..."
	}
	return text
}
