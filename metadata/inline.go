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

// putContent stores the bytes of an inline extent in a record of their own, so that
// lists of extents don't go through them.
func (c *change) putContent(e *proto.Extent) error {
	if !isInline(e) {
		return nil
	}
	content := e.GetContent()
	e.Content = nil
	return c.putValue(bucketExtentContents, e.GetId(), content)
}

// fillContent is the inverse of putContent for an extent that was read.
func (v view) fillContent(e *proto.Extent) error {
	if !isInline(e) {
		return nil
	}
	content, found, err := v.value(bucketExtentContents, e.GetId())
	if err != nil {
		return err
	}
	if !found || uint64(len(content)) != e.GetSize() {
		return fmt.Errorf("%w: inline extent %x has %d bytes of %d", ErrCorrupt, e.GetId(), len(content), e.GetSize())
	}
	e.Content = bytes.Clone(content)
	return nil
}
