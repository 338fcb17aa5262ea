package metadata

import (
	"bytes"
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// A few KiB cost more as shards, a stream, a file and two fsyncs on each holder, than
// they weigh: so the first bytes of a blob may be in the command that records them, and
// from then on in the state. Such an extent is inline: it has no layout, no holders and no
// shards, and is as safe as its record.

// MaxInlineExtentEnd is the byte of a blob at or before which its inline extents end. It
// bounds what a blob adds to the state, and is part of the log's format.
const MaxInlineExtentEnd = 32 << 10

// isInline reports whether an extent's bytes are in the state.
func isInline(e *proto.Extent) bool { return e.GetLayout() == nil }

// checkInline refuses an inline extent that is not whole, or begins at a byte of its
// blob from which on it can't be one.
func checkInline(e *proto.Extent, offset uint64) error {
	switch {
	case uint64(len(e.GetContent())) != e.GetSize():
		return invalid("extent %x has no layout, and %d bytes of content, not %d", e.GetId(), len(e.GetContent()), e.GetSize())
	case len(e.GetHolders()) > 0:
		return invalid("extent %x has %d holders and no layout", e.GetId(), len(e.GetHolders()))
	case offset+e.GetSize() > MaxInlineExtentEnd:
		return invalid("extent %x can't be inline: %d bytes from byte %d on", e.GetId(), e.GetSize(), offset)
	}
	return nil
}

// contentPieceBytes is how much of an inline extent is in one record. Two such fill a page of the database. Larger values fill several pages
// together: bbolt parts them only once there are more than four (bbolt node.go, splitTwo), and writes all of them anew with each that comes.
// It is part of the log's format, since the state's hash is over records.
const contentPieceBytes = 2000

// contentKey is the key of an extent's n-th piece.
func contentKey(id []byte, n int) []byte { return append(bytes.Clone(id), byte(n)) }

// contentPieces is how many an extent has.
func contentPieces(e *proto.Extent) int {
	return int((e.GetSize() + contentPieceBytes - 1) / contentPieceBytes)
}

// putContent stores the bytes of an inline extent in records of their own, so that
// lists of extents don't go through them.
func (c *change) putContent(e *proto.Extent) error {
	if !isInline(e) {
		return nil
	}
	content := e.GetContent()
	e.Content = nil
	for n := range contentPieces(e) {
		piece := content[n*contentPieceBytes : min((n+1)*contentPieceBytes, len(content))]
		if err := c.putValue(bucketExtentContents, contentKey(e.GetId(), n), piece); err != nil {
			return err
		}
	}
	return nil
}

// dropContent is the end of putContent.
func (c *change) dropContent(e *proto.Extent) error {
	if !isInline(e) {
		return nil
	}
	for n := range contentPieces(e) {
		if err := c.remove(bucketExtentContents, contentKey(e.GetId(), n)); err != nil {
			return err
		}
	}
	return nil
}

// fillContent is the inverse of putContent for an extent that was read.
func (v view) fillContent(e *proto.Extent) error {
	if !isInline(e) {
		return nil
	}
	if e.GetSize() > MaxInlineExtentEnd {
		return fmt.Errorf("%w: inline extent %x of %d bytes", ErrCorrupt, e.GetId(), e.GetSize())
	}
	content := make([]byte, 0, e.GetSize())
	for n := range contentPieces(e) {
		piece, found, err := v.value(bucketExtentContents, contentKey(e.GetId(), n))
		if err != nil {
			return err
		}
		if want := min(int(e.GetSize())-len(content), contentPieceBytes); !found || len(piece) != want {
			return fmt.Errorf("%w: piece %d of inline extent %x has %d bytes of %d", ErrCorrupt, n, e.GetId(), len(piece), want)
		}
		content = append(content, piece...)
	}
	e.Content = content
	return nil
}
