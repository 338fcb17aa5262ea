package gateway

import (
	"errors"
	"strings"
	"testing"
)

func TestSplitDigest(t *testing.T) {
	hex256, hex512 := strings.Repeat("0a", 32), strings.Repeat("f9", 64)
	for _, digest := range []string{"sha256:" + hex256, "sha512:" + hex512} {
		if algorithm, encoded, ok := splitDigest(digest); !ok || algorithm+":"+encoded != digest {
			t.Errorf("%s: got %q %q %v", digest, algorithm, encoded, ok)
		}
	}
	for _, digest := range []string{
		"", ":", "sha256", "sha256:", hex256, "sha256:" + hex512, "sha512:" + hex256, "sha256:" + hex256 + "0", "sha256:" + hex256[1:],
		"SHA256:" + hex256, "sha256:" + strings.ToUpper(hex256), "sha384:" + strings.Repeat("0a", 48), "md5:" + hex256,
		"sha256:" + strings.Repeat("g", 64), "sha256:" + hex256[2:] + "/.", "sha256:baddigeststring", " sha256:" + hex256,
	} {
		if _, _, ok := splitDigest(digest); ok {
			t.Errorf("%q was taken for a digest", digest)
		}
		if err := checkDigest(digest); !errors.Is(err, errDigestInvalid) {
			t.Errorf("%q: %v", digest, err)
		}
	}
}

// FuzzSplitDigest: a digest can stand in a path, and is what it says.
func FuzzSplitDigest(f *testing.F) {
	f.Add(someDigest)
	f.Add("sha512:00")
	f.Fuzz(func(t *testing.T, digest string) {
		algorithm, encoded, ok := splitDigest(digest)
		if !ok {
			return
		}
		if algorithm+":"+encoded != digest || newHash(algorithm) == nil || 2*newHash(algorithm).Size() != len(encoded) {
			t.Errorf("%q", digest)
		}
		if strings.Trim(encoded, "0123456789abcdef") != "" {
			t.Errorf("%q is not lower-case hexadecimal", encoded)
		}
	})
}
