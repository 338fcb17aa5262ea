package gateway

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"
)

// Digest algorithms that blobs and manifests may be named by: the registered
// ones of the OCI image specification that every client may use.
const (
	sha256Algorithm = "sha256"
	sha512Algorithm = "sha512"
)

// newHash returns a hash of the algorithm, or nil if it is not supported.
func newHash(algorithm string) hash.Hash {
	switch algorithm {
	case sha256Algorithm:
		return sha256.New()
	case sha512Algorithm:
		return sha512.New()
	default:
		return nil
	}
}

// splitDigest takes a digest apart and says whether it is one: a supported
// algorithm and as many lower-case hexadecimal digits as that has.
func splitDigest(digest string) (algorithm, encoded string, ok bool) {
	algorithm, encoded, found := strings.Cut(digest, ":")
	if !found {
		return "", "", false
	}
	switch {
	case algorithm == sha256Algorithm && len(encoded) == hex.EncodedLen(sha256.Size):
	case algorithm == sha512Algorithm && len(encoded) == hex.EncodedLen(sha512.Size):
	default:
		return "", "", false
	}
	for _, c := range []byte(encoded) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", "", false
		}
	}
	return algorithm, encoded, true
}

// checkDigest fails with errDigestInvalid if the text is not a digest.
func checkDigest(digest string) error {
	if _, _, ok := splitDigest(digest); !ok {
		return refuse(errDigestInvalid, "this is not a sha256 or sha512 digest", map[string]string{"digest": digest})
	}
	return nil
}

// digestOf returns the digest of content by a supported algorithm.
func digestOf(algorithm string, content []byte) string {
	running := newHash(algorithm)
	_, _ = running.Write(content) // A hash never fails: see hash.Hash.
	return formatDigest(algorithm, running)
}

func formatDigest(algorithm string, running hash.Hash) string {
	return algorithm + ":" + hex.EncodeToString(running.Sum(nil))
}
