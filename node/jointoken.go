package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// A join token is one string, in parts with a dot between them:
//
//	atoll1      what it is
//	ID          names it in lists and logs; 8 letters and digits
//	SECRET      32 random bytes, base64url
//	AUTHORITY   SHA-256 of the authority's certificate, base64url: whom to show the secret to
//	CHECK       CRC-32 of all before, base64url: tells a token that was cut or mistyped
//	            from one that is wrong
const joinTokenPrefix = "atoll1."

const joinSecretBytes = 32

// DefaultJoinTokenTTL is how long a join token is good for unless told otherwise.
const DefaultJoinTokenTTL = 24 * time.Hour

// joinToken is a token as a node is given it. Secret: it prints as its id.
type joinToken struct {
	id        string
	secret    []byte
	authority authorityHash
}

// String names the token without giving it away.
func (t joinToken) String() string { return "join token " + t.id }

// GoString is String, so that %#v gives nothing away either.
func (t joinToken) GoString() string { return t.String() }

func newJoinToken(authority authorityHash) joinToken {
	var id [5]byte
	_, _ = rand.Read(id[:]) // Never fails: see its documentation.
	t := joinToken{id: strings.ToLower(base32.StdEncoding.EncodeToString(id[:])), secret: make([]byte, joinSecretBytes), authority: authority}
	_, _ = rand.Read(t.secret)
	return t
}

// hash is what the state keeps of the secret. It is random, so that it can't be
// guessed and a fast hash will do.
func (t joinToken) hash() []byte {
	sum := sha256.Sum256(t.secret)
	return sum[:]
}

// encode is the token itself.
func (t joinToken) encode() string {
	text := joinTokenPrefix + t.id + "." + base64.RawURLEncoding.EncodeToString(t.secret) + "." + base64.RawURLEncoding.EncodeToString(t.authority[:])
	return text + "." + tokenCheck(text)
}

func tokenCheck(text string) string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(text))))
}

// parseJoinToken reads a token. Errors don't quote it.
func parseJoinToken(text string) (joinToken, error) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, joinTokenPrefix) {
		return joinToken{}, fmt.Errorf("this is no join token: one begins with %s and comes from 'atoll token create'", joinTokenPrefix)
	}
	end := strings.LastIndexByte(text, '.')
	parts := strings.Split(text, ".")
	if len(parts) != 5 || tokenCheck(text[:end]) != parts[4] {
		return joinToken{}, errors.New("the join token is not whole, or has a typing error in it: copy all of the line that 'atoll token create' has printed")
	}
	t := joinToken{id: parts[1]}
	secret, err := base64.RawURLEncoding.DecodeString(parts[2])
	authority, authorityErr := base64.RawURLEncoding.DecodeString(parts[3])
	if err != nil || authorityErr != nil || len(secret) != joinSecretBytes || copy(t.authority[:], authority) != len(t.authority) {
		return joinToken{}, errors.New("the join token is not of a form that this atoll knows: use the version that has made it")
	}
	t.secret = secret
	return t, nil
}

// JoinTokenInfo is what there is to know of a join token, but for the token.
type JoinTokenInfo struct {
	// ID is what it is revoked by.
	ID          string    `json:"id"`
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires"`
	// Uses is how many nodes it still lets in.
	Uses uint32 `json:"uses"`
	// Member is the one member that it lets back in; empty if it is for new nodes.
	Member string `json:"member,omitempty"`
	// Nodes are the names of those that it has let in.
	Nodes []string `json:"nodes,omitempty"`
	// State is active, expired or used up.
	State string `json:"state"`
}

// JoinToken is a new one. Secret.
type JoinToken struct {
	JoinTokenInfo
	Token string `json:"token"`
}

// JoinTokenRequest says what a join token is to be good for.
type JoinTokenRequest struct {
	TTL time.Duration
	// Uses is how many nodes it lets in.
	Uses int
	// Member is the name of the one member that it lets back in, which has lost its
	// certificate or was away while the authority was changed; empty for new nodes.
	Member string
	// Description is for people.
	Description string
}

// CreateJoinToken makes a join token, through the node whose data folder is given. It
// can't be shown again.
func CreateJoinToken(ctx context.Context, dataDir string, request JoinTokenRequest) (*JoinToken, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	query := url.Values{
		"ttl": {request.TTL.String()}, "uses": {strconv.Itoa(request.Uses)}, "member": {request.Member}, "description": {request.Description},
	}
	token := &JoinToken{}
	return token, askAdmin(ctx, dataDir, http.MethodPost, "/tokens?"+query.Encode(), token)
}

// ListJoinTokens lists all join tokens, through the node whose data folder is given,
// the newest first. Those that are over are shown for another week.
func ListJoinTokens(ctx context.Context, dataDir string) (tokens []JoinTokenInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	return tokens, askAdmin(ctx, dataDir, http.MethodGet, "/tokens", &tokens)
}

// RevokeJoinToken ends a join token, through the node whose data folder is given. Nodes
// that it has let in stay.
func RevokeJoinToken(ctx context.Context, dataDir, id string) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	var done struct{}
	return askAdmin(ctx, dataDir, http.MethodDelete, "/tokens/"+url.PathEscape(id), &done)
}

func (a *admin) serveCreateToken(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	request := JoinTokenRequest{Member: query.Get("member"), Description: query.Get("description")}
	var err, usesErr error
	request.TTL, err = time.ParseDuration(query.Get("ttl"))
	request.Uses, usesErr = strconv.Atoi(query.Get("uses"))
	if err := errors.Join(err, usesErr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !a.checkAudit(w) {
		return
	}
	token, err := a.createToken(r.Context(), request)
	id := ""
	if err == nil {
		id = token.ID
	}
	a.auditAdmin(r, "token create", id, fmt.Sprintf("for %d nodes and %s, member %q, %q", request.Uses, request.TTL, request.Member, request.Description), err)
	answerAdmin(w, token, err)
}

func (a *admin) createToken(ctx context.Context, request JoinTokenRequest) (*JoinToken, error) {
	switch {
	case request.TTL <= 0 || request.TTL > metadata.MaxJoinTokenTTL:
		return nil, refusal(fmt.Sprintf("a join token is good for more than 0 and at most %s, not for %s", metadata.MaxJoinTokenTTL, request.TTL))
	case request.Uses < 1 || request.Uses > metadata.MaxJoinTokenUses:
		return nil, refusal(fmt.Sprintf("a join token lets in 1 to %d nodes, not %d", metadata.MaxJoinTokenUses, request.Uses))
	case request.Member != "" && request.Uses != 1:
		return nil, refusal(fmt.Sprintf("a join token that lets a member back in is for that one, not for %d nodes", request.Uses))
	}
	if err := a.store.CatchUp(ctx); err != nil {
		return nil, err
	}
	authority, err := parseAuthority(a.store.LocalAuthority())
	if errors.Is(err, errNoAuthority) {
		return nil, refusal(err.Error())
	}
	if err != nil {
		return nil, err
	}
	if rotationOf(a.store.LocalAuthority()) == rotationSpreading {
		return nil, refusal("a new authority is about to take over, after which the token would be void: wait until 'atoll ca status' shows that the new one signs")
	}
	token := newJoinToken(hashOf(authority.signer()))
	now := time.Now()
	record := &atoll.JoinToken{
		Id: token.id, Sha256: token.hash(), CreatedUnixMs: now.UnixMilli(), ExpiresUnixMs: now.Add(request.TTL).UnixMilli(),
		Uses: uint32(request.Uses), Member: request.Member, Description: request.Description,
	}
	err = a.store.PutJoinToken(ctx, record)
	if errors.Is(err, metadata.ErrInvalid) || errors.Is(err, metadata.ErrNodeUnknown) {
		return nil, refusal(err.Error())
	}
	if err != nil {
		return nil, err
	}
	return &JoinToken{JoinTokenInfo: joinTokenInfo(record, now), Token: token.encode()}, nil
}

func (a *admin) serveListTokens(w http.ResponseWriter, r *http.Request) {
	records, err := a.store.JoinTokens(r.Context())
	tokens := make([]JoinTokenInfo, 0, len(records))
	for _, record := range records {
		tokens = append(tokens, joinTokenInfo(record, time.Now()))
	}
	slices.SortStableFunc(tokens, func(x, y JoinTokenInfo) int { return y.Created.Compare(x.Created) })
	answerAdmin(w, tokens, err)
}

func joinTokenInfo(record *atoll.JoinToken, now time.Time) JoinTokenInfo {
	info := JoinTokenInfo{
		ID: record.GetId(), Description: record.GetDescription(), Member: record.GetMember(), Uses: record.GetUses(), State: "active",
		Created: time.UnixMilli(record.GetCreatedUnixMs()).UTC(), Expires: time.UnixMilli(record.GetExpiresUnixMs()).UTC(),
	}
	for _, use := range record.GetUsed() {
		info.Nodes = append(info.Nodes, use.GetNodeName())
	}
	switch {
	case info.Uses == 0:
		info.State = "used up"
	case !now.Before(info.Expires):
		info.State = "expired"
	}
	return info
}

func (a *admin) serveRevokeToken(w http.ResponseWriter, r *http.Request) {
	if !a.checkAudit(w) {
		return
	}
	id := r.PathValue("id")
	err := a.store.DeleteJoinToken(r.Context(), id)
	if errors.Is(err, metadata.ErrJoinToken) {
		err = refusal(fmt.Sprintf("there is no join token %q: 'atoll token list' shows those that there are", id))
	}
	a.auditAdmin(r, "token revoke", id, "", err)
	answerAdmin(w, struct{}{}, err)
}
