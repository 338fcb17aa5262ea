package gateway

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// maxETags is how many entity tags one request may name.
const maxETags = 64

// precondition reads If-Match and If-None-Match of a request that changes a tag or
// a manifest (RFC 9110 section 13.1); nil for a request without them. Entity tags
// are quoted digests, as the replies to GET and HEAD have them. Whether it holds is
// decided in the state machine, in the same step as the change. A client that
// repeats a request since it did not get the reply may find that its own first try
// is what keeps it from holding: the reply says what is there.
func precondition(header http.Header) (*proto.Precondition, error) {
	wanted := &proto.Precondition{}
	anything, tags, err := parseETags(header, "If-Match")
	if err != nil {
		return nil, err
	}
	wanted.Exists = anything || len(tags) > 0
	for _, tag := range tags {
		// The comparison is strong: a weak tag, like one that is no digest, is nothing
		// that could be there.
		wanted.Digests = append(wanted.Digests, tag.strong())
	}
	anything, tags, err = parseETags(header, "If-None-Match")
	if err != nil {
		return nil, err
	}
	wanted.Missing = anything
	for _, tag := range tags {
		if tag.opaque != "" { // What does not exist has no digest.
			wanted.NotDigests = append(wanted.NotDigests, tag.opaque)
		}
	}
	if !wanted.Exists && !wanted.Missing && len(wanted.NotDigests) == 0 {
		return nil, nil
	}
	return wanted, nil
}

// entityTag is one of RFC 9110 section 8.8.3.
type entityTag struct {
	opaque string
	weak   bool
}

// strong returns what a digest must equal.
func (e entityTag) strong() string {
	if e.weak || e.opaque == "" {
		return "never"
	}
	return e.opaque
}

// parseETags reads the lists of entity tags under a name. anything says that there
// is a "*", which stands alone.
func parseETags(header http.Header, name string) (anything bool, tags []entityTag, err error) {
	lines := header.Values(name)
	rest := strings.Join(lines, ",")
	malformed := refuse(errPreconditionInvalid, name+" is not * or a list of quoted digests", nil)
	if strings.Trim(rest, " \t") == "*" {
		return true, nil, nil
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			break
		}
		var tag entityTag
		rest, tag.weak = strings.CutPrefix(rest, "W/")
		quoted, found := strings.CutPrefix(rest, `"`)
		if !found {
			return false, nil, malformed
		}
		tag.opaque, rest, found = strings.Cut(quoted, `"`)
		rest = strings.TrimLeft(rest, " \t")
		if !found || !isETagText(tag.opaque) || (rest != "" && rest[0] != ',') {
			return false, nil, malformed
		}
		if len(tags) == maxETags {
			return false, nil, refuse(errPreconditionInvalid, fmt.Sprintf("%s has more than %d entity tags", name, maxETags), nil)
		}
		tags = append(tags, tag)
	}
	if len(lines) > 0 && len(tags) == 0 {
		return false, nil, malformed // It would hold of nothing, or of anything.
	}
	return false, tags, nil
}

// isETagText says whether a text may stand between an entity tag's quotes.
func isETagText(text string) bool {
	for _, c := range []byte(text) {
		if c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}
