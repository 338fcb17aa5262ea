package gateway

import (
	"cmp"
	"fmt"
	"slices"
)

// byteRanges writes several spans of a blob as multipart/byteranges (RFC 9110
// section 14.6): one part for each span, in the order asked, nothing merged, as
// containers/image wants it.
type byteRanges struct {
	boundary string
	size     uint64
}

// maxBoundaryBytes is how long a boundary may be (RFC 2046 section 5.1.1).
const maxBoundaryBytes = 70

// newByteRanges returns the form of a reply with parts of a blob. The boundary is
// the blob's own digest, or the beginning of it: no content is known that has its
// own digest in it, and all nodes send the same bytes.
func newByteRanges(digest string, size uint64) byteRanges {
	_, encoded, _ := splitDigest(digest)
	return byteRanges{boundary: encoded[:min(len(encoded), maxBoundaryBytes)], size: size}
}

// contentType is the type of the whole reply.
func (b byteRanges) contentType() string { return "multipart/byteranges; boundary=" + b.boundary }

// head stands before the bytes of a span. The first one begins with an empty line
// as well, a preamble without bytes.
func (b byteRanges) head(s span) string {
	return "\r\n--" + b.boundary + "\r\nContent-Type: " + blobType + "\r\nContent-Range: " + s.contentRange(b.size) + "\r\n\r\n"
}

// tail stands behind the last span.
func (b byteRanges) tail() string { return "\r\n--" + b.boundary + "--\r\n" }

// length returns how many bytes the reply has, of which nothing is kept: a header
// may ask for maxRanges parts.
func (b byteRanges) length(spans []span) uint64 {
	total := uint64(len(b.tail()))
	for _, s := range spans {
		total += uint64(len(b.head(s))) + s.length
	}
	return total
}

// overlap says whether any byte is in two of the spans. Spans of a blob that have
// more bytes than the blob do overlap. Who asks for that wants, or would get, more
// than everything: RFC 9110 section 14.2 lets a server ignore such a header.
func overlap(spans []span) bool {
	sorted := slices.Clone(spans)
	slices.SortFunc(sorted, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].offset+sorted[i-1].length > sorted[i].offset {
			return true
		}
	}
	return false
}

// contentRange is the Content-Range of a part, or of a 206 that has one.
func (s span) contentRange(size uint64) string {
	return fmt.Sprintf("bytes %d-%d/%d", s.offset, s.offset+s.length-1, size)
}
