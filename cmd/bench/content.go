package bench

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	mathrand "math/rand/v2"
)

const (
	// patternBytes is how often content repeats itself: far beyond the window of what
	// compresses on the fly, and odd, so that no two aligned blocks of a blob are the same.
	patternBytes = 4<<20 - 1
	// tailBytes is the end of each blob, which no other blob has: a run's nonce and a number.
	tailBytes = nonceBytes + 8
	// nonceBytes keep the blobs of one run from being known to a registry from another.
	nonceBytes = 16
)

// content makes blobs that don't compress and are all different, from a few MiB of
// memory. All blobs of one size are the same up to their tail, so that the digest of
// that much is worked out once and each blob's costs next to nothing. A store that
// finds equal parts of different blobs would gain from that; registries know whole
// blobs only.
type content struct {
	pattern []byte
	nonce   [nonceBytes]byte
}

// newContent draws a nonce. The pattern is the same in every run.
func newContent() (*content, error) {
	c := &content{pattern: make([]byte, patternBytes)}
	if _, err := rand.Read(c.nonce[:]); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	if _, err := mathrand.NewChaCha8([32]byte{}).Read(c.pattern); err != nil {
		return nil, fmt.Errorf("make content: %w", err)
	}
	return c, nil
}

// family is all blobs of one size.
type family struct {
	content *content
	// bytes is the size of each.
	bytes int64
	// head has hashed everything before the tail. It is cloned, never written to.
	head hash.Cloner
}

// family hashes what the blobs of one size have in common: about half a second a GiB.
func (c *content) family(size int64) (*family, error) {
	f := &family{content: c, bytes: size}
	sum := sha256.New()
	for left := size - tailBytes; left > 0; left -= patternBytes {
		sum.Write(c.pattern[:min(left, patternBytes)])
	}
	cloner, ok := sum.(hash.Cloner)
	if !ok {
		return nil, fmt.Errorf("hash content: %T can't be cloned", sum)
	}
	f.head = cloner
	return f, nil
}

// blob is one blob of a family.
type blob struct {
	*family
	tail   [tailBytes]byte
	digest string
}

// blob returns the blob with a number. Several goroutines may ask at once.
func (f *family) blob(number uint64) (blob, error) {
	b := blob{family: f}
	copy(b.tail[:], f.content.nonce[:])
	binary.BigEndian.PutUint64(b.tail[nonceBytes:], number)
	sum, err := f.head.Clone()
	if err != nil {
		return blob{}, fmt.Errorf("hash content: %w", err)
	}
	sum.Write(b.tail[:])
	b.digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return b, nil
}

// at returns a run of the blob's bytes that begins at offset: not all that are left,
// but one at least before the end, and none at the end.
func (b *blob) at(offset int64) []byte {
	head := b.bytes - tailBytes
	if offset >= head {
		return b.tail[offset-head:]
	}
	inPattern := offset % patternBytes
	return b.pattern()[inPattern:min(patternBytes, inPattern+head-offset)]
}

func (b *blob) pattern() []byte { return b.content.pattern }

// equal says whether p is what the blob has at offset.
func (b *blob) equal(offset int64, p []byte) bool {
	for len(p) > 0 {
		want := b.at(offset)
		if len(want) == 0 {
			return false
		}
		n := min(len(want), len(p))
		if !bytes.Equal(p[:n], want[:n]) {
			return false
		}
		p, offset = p[n:], offset+int64(n)
	}
	return true
}

// section reads the bytes of a blob from offset to end.
type section struct {
	blob        *blob
	offset, end int64
}

// Read copies as much as there is and p takes.
func (s *section) Read(p []byte) (read int, err error) {
	if s.offset >= s.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.end-s.offset)]
	for read < len(p) {
		n := copy(p[read:], s.blob.at(s.offset))
		read, s.offset = read+n, s.offset+int64(n)
	}
	return read, nil
}
