package bench

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"
	"testing/iotest"
)

func testFamily(t *testing.T, size int64) *family {
	t.Helper()
	c, err := newContent()
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.family(size)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func testBlob(t *testing.T, f *family, number uint64) blob {
	t.Helper()
	b, err := f.blob(number)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The digest is that of what is sent, at sizes around those where something wraps.
func TestContentDigest(t *testing.T) {
	for _, size := range []int64{MinSize, 64 << 10, patternBytes - 1, patternBytes, patternBytes + tailBytes, patternBytes + tailBytes + 1, 2*patternBytes + 17} {
		b := testBlob(t, testFamily(t, size), 7)
		content, err := io.ReadAll(&section{blob: &b, end: size})
		if err != nil || int64(len(content)) != size {
			t.Fatalf("%d bytes, want %d, %v", len(content), size, err)
		}
		sum := sha256.Sum256(content)
		if want := "sha256:" + hex.EncodeToString(sum[:]); b.digest != want {
			t.Errorf("%d bytes: digest is %s, want %s", size, b.digest, want)
		}
		if !b.equal(0, content) || !b.equal(size/2, content[size/2:]) || b.equal(0, append(content, 0)) {
			t.Errorf("%d bytes: what was sent is not what is expected", size)
		}
		content[size-1]++
		if b.equal(0, content) {
			t.Errorf("%d bytes: another byte is not seen", size)
		}
		if err := iotest.TestReader(&section{blob: &b, offset: size - 100, end: size - 1}, b.join(size-100, size-1)); err != nil {
			t.Error(err)
		}
	}
}

// join is a part of the blob as at has it.
func (b *blob) join(offset, end int64) []byte {
	var joined []byte
	for offset < end {
		run := b.at(offset)
		run = run[:min(int64(len(run)), end-offset)]
		joined, offset = append(joined, run...), offset+int64(len(run))
	}
	return joined
}

func TestContentDiffers(t *testing.T) {
	f := testFamily(t, 1<<20)
	one, two := testBlob(t, f, 1), testBlob(t, f, 2)
	if one.digest == two.digest || one.digest != testBlob(t, f, 1).digest {
		t.Error("a blob's digest goes by its number")
	}
	if other := testBlob(t, testFamily(t, 1<<20), 1); other.digest == one.digest {
		t.Error("two runs make the same blob")
	}
	if bytes.Equal(one.join(0, 4096), one.join(4096, 8192)) {
		t.Error("content repeats itself")
	}
}
