package gateway

import (
	"fmt"
	"strconv"
	"strings"
)

// span is a run of a blob's bytes.
type span struct{ offset, length uint64 }

// maxRanges is how many ranges one request may ask for: as many as
// containers/image asks for at most. It halves the number when told 400.
const maxRanges = 1024

// parseRange reads a Range header for content of the given size (RFC 9110
// section 14.2). No span means that the header asks for something else than
// bytes and is to be ignored. It fails with errRangeInvalid when nothing that is
// asked for exists, and also for a malformed header, which the RFC leaves open
// and net/http answers likewise.
func parseRange(header string, size uint64) ([]span, error) {
	set, found := strings.CutPrefix(header, "bytes=")
	if !found {
		return nil, nil
	}
	var spans []span
	count := 0
	for part := range strings.SplitSeq(set, ",") {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue // RFC 9110 section 5.6.1.2: empty elements of a list are ignored.
		}
		if count++; count > maxRanges {
			return nil, refuse(errTooManyRanges, fmt.Sprintf("more than %d ranges", maxRanges), nil)
		}
		one, exists, ok := parseOneRange(part, size)
		if !ok {
			return nil, errRangeInvalid
		}
		if exists {
			spans = append(spans, one)
		}
	}
	if len(spans) == 0 {
		return nil, errRangeInvalid
	}
	return spans, nil
}

// parseOneRange reads "first-last", "first-" or "-count", clamped to the size.
// exists says whether any of it is there; ok whether it is well formed.
func parseOneRange(part string, size uint64) (s span, exists, ok bool) {
	first, last, found := strings.Cut(part, "-")
	if !found {
		return span{}, false, false
	}
	if first == "" {
		count, ok := parseBytes(last)
		if !ok {
			return span{}, false, false
		}
		count = min(count, size)
		return span{offset: size - count, length: count}, count > 0, true
	}
	from, ok := parseBytes(first)
	if !ok {
		return span{}, false, false
	}
	if last == "" {
		if from >= size {
			return span{}, false, true
		}
		return span{offset: from, length: size - from}, true, true
	}
	to, ok := parseBytes(last)
	if !ok || to < from {
		return span{}, false, false
	}
	if from >= size {
		return span{}, false, true
	}
	return span{offset: from, length: min(to, size-1) - from + 1}, true, true
}

// parseContentRange reads the Content-Range of an upload's chunk: "first-last",
// as the OCI specification has it, or the HTTP form "bytes first-last/size",
// which some clients send.
func parseContentRange(header string) (first, last uint64, ok bool) {
	text := strings.TrimPrefix(strings.TrimSpace(header), "bytes ")
	text, _, _ = strings.Cut(text, "/")
	from, to, found := strings.Cut(text, "-")
	if !found {
		return 0, 0, false
	}
	first, okFirst := parseBytes(from)
	last, okLast := parseBytes(to)
	if !okFirst || !okLast || last < first {
		return 0, 0, false
	}
	return first, last, true
}

// parseBytes reads a number of bytes: decimal digits and nothing else, below
// 2^63, so that sums of two fit.
func parseBytes(text string) (uint64, bool) {
	if !isDigits(text) {
		return 0, false // ParseUint takes "+1" and "1_0" with base 0 only, but be strict.
	}
	n, err := strconv.ParseUint(text, 10, 63)
	return n, err == nil
}

// isDigits says whether a text is a number in decimal digits.
func isDigits(text string) bool {
	for _, c := range []byte(text) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return text != ""
}

// uploadRange is the Range header that tells how far an upload has come. The
// format has no way to say "nothing yet": an upload without bytes reads "0-0",
// as every other registry says it.
func uploadRange(size uint64) string {
	if size == 0 {
		return "0-0"
	}
	return fmt.Sprintf("0-%d", size-1)
}
