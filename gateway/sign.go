package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// A signature allows whoever has the URL to read one blob through one repository
// until some time, at any node: GET and HEAD, whole or in part. It is an HMAC-SHA256
// with one of the cluster's keys over what it allows. Nothing else allows it: a
// header with credentials beside it, which some clients send, is not looked at.

// Parameters of a signed URL.
const (
	paramExpires   = "atoll-expires" // Unix seconds
	paramKey       = "atoll-key"     // id of the key
	paramSignature = "atoll-signature"
)

// signatureSkew is how far the clocks of two nodes may be apart: a signature
// counts for that much longer.
const signatureSkew = time.Minute

// SigningKeys are the secrets that all nodes share.
type SigningKeys interface {
	// SigningKeys returns those that this node knows, the newest first.
	SigningKeys() ([]*proto.SigningKey, error)
	// CatchUp returns once this node knows all that there were before the call.
	CatchUp(ctx context.Context) error
}

// signBlob returns the query of a URL at which a blob can be read until expires.
func signBlob(key *proto.SigningKey, repository, digest string, expires time.Time) string {
	unix := expires.Unix()
	return url.Values{
		paramExpires:   {strconv.FormatInt(unix, 10)},
		paramKey:       {strconv.FormatUint(uint64(key.GetId()), 10)},
		paramSignature: {hex.EncodeToString(blobSignature(key.GetSecret(), repository, digest, unix))},
	}.Encode()
}

// blobSignature computes the signature. Every part has its length in front, so
// that no two readings give the same bytes.
func blobSignature(secret []byte, repository, digest string, expiresUnix int64) []byte {
	mac := hmac.New(sha256.New, secret)
	for _, part := range []string{"atoll read blob v1", repository, digest} {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write([]byte(part))
	}
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(expiresUnix)))
	return mac.Sum(nil)
}

// isSigned says whether a request claims to be signed.
func isSigned(query url.Values) bool { return query.Has(paramSignature) }

// checkSignature fails with errSignature unless the request's signature allows
// to read the blob now. A key that this node has not heard of yet may be new.
func (g *gateway) checkSignature(ctx context.Context, x *exchange) error {
	id, errID := strconv.ParseUint(x.query.Get(paramKey), 10, 32)
	expires, errExpires := strconv.ParseInt(x.query.Get(paramExpires), 10, 64)
	signature, errHex := hex.DecodeString(x.query.Get(paramSignature))
	if errID != nil || errExpires != nil || errHex != nil {
		return refuse(errSignature, "the signature is malformed", nil)
	}
	key, err := g.signingKey(uint32(id))
	if err == nil && key == nil {
		if err := g.metadata.CatchUp(ctx); err != nil {
			return fmt.Errorf("look for signing key %d: %w", id, err)
		}
		key, err = g.signingKey(uint32(id))
	}
	if err != nil {
		return fmt.Errorf("look for signing key %d: %w", id, err)
	}
	if key == nil || !hmac.Equal(signature, blobSignature(key.GetSecret(), x.repository, x.reference, expires)) {
		return refuse(errSignature, "the signature is not valid for this blob", nil)
	}
	if g.now().Add(-signatureSkew).Unix() > expires {
		return refuse(errSignature, "the signature has expired", nil)
	}
	return nil
}

// signingKey returns a key that this node knows, or nil.
func (g *gateway) signingKey(id uint32) (*proto.SigningKey, error) {
	keys, err := g.metadata.SigningKeys()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(keys, func(key *proto.SigningKey) bool { return key.GetId() == id }); i >= 0 {
		return keys[i], nil
	}
	return nil, nil
}
