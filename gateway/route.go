package gateway

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/atollregistry/atoll/metadata"
)

// operation is what a path is about.
type operation uint8

const (
	opUnknown operation = iota
	opBase
	opCatalog
	opTags
	opReferrers
	opBlob
	opUploads // where uploads start
	opUpload  // one upload
	opManifest
	opToken // where tokens are had
)

// String returns the operation's name in logs and metrics.
func (o operation) String() string {
	switch o {
	case opBase:
		return "base"
	case opCatalog:
		return "catalog"
	case opTags:
		return "tags"
	case opReferrers:
		return "referrers"
	case opBlob:
		return "blob"
	case opUploads:
		return "uploads"
	case opUpload:
		return "upload"
	case opManifest:
		return "manifest"
	case opToken:
		return "token"
	default:
		return "unknown"
	}
}

// route is a request's path, taken apart.
type route struct {
	operation operation
	// repository is set for all operations but base, catalog and token.
	repository string
	// reference is the path's last element: the digest of a blob or a subject, the
	// id of an upload, a manifest's tag or digest.
	reference string
}

// byDigest says whether the reference is meant as a digest: no tag has a colon.
func (r route) byDigest() bool { return strings.Contains(r.reference, ":") }

// splitPath takes a decoded path apart, without a look at the grammar of its
// parts. Repository names may contain the words that separate the parts, such as
// "blobs/uploads/manifests", so that a path is read from its end: its last two
// or three elements decide what it is about, whatever stands before is the name.
func splitPath(path string) route {
	rest, found := strings.CutPrefix(path, "/v2/")
	if path == "/v2" || (found && rest == "") {
		return route{operation: opBase}
	}
	if path == tokenPath {
		return route{operation: opToken}
	}
	if rest == "_catalog" && found {
		return route{operation: opCatalog}
	}
	elements := strings.Split(rest, "/")
	n := len(elements)
	if !found || n < 3 {
		return route{}
	}
	verb, last := elements[n-2], elements[n-1]
	named := func(o operation, nameEnd int, reference string) route {
		return route{operation: o, repository: strings.Join(elements[:nameEnd], "/"), reference: reference}
	}
	switch {
	case verb == "tags" && last == "list":
		return named(opTags, n-2, "")
	case verb == "manifests" && last != "":
		return named(opManifest, n-2, last)
	case verb == "referrers" && last != "":
		return named(opReferrers, n-2, last)
	case verb == "blobs" && last == "uploads":
		return named(opUploads, n-2, "")
	case verb == "blobs" && last != "":
		return named(opBlob, n-2, last)
	case verb == "uploads" && n >= 4 && elements[n-3] == "blobs" && last == "":
		return named(opUploads, n-3, "")
	case verb == "uploads" && n >= 4 && elements[n-3] == "blobs":
		return named(opUpload, n-3, last)
	}
	return route{}
}

// The grammars are those of the OCI distribution specification ("Pulling
// manifests"). Upload ids are ours: UUIDs.
var (
	repositoryGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	uploadGrammar     = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
)

// maxRepositoryBytes is the longest repository name. Clients bound the name
// together with the registry's host by 255 characters.
const maxRepositoryBytes = 255

func validRepository(name string) bool {
	return len(name) <= maxRepositoryBytes && repositoryGrammar.MatchString(name)
}

// check says whether the parts of the path are what they should be.
func (r route) check(method string) error {
	if r.operation == opBase || r.operation == opCatalog || r.operation == opToken {
		return nil
	}
	if !validRepository(r.repository) {
		return refuse(errNameInvalid, "this is not a repository name", map[string]string{"name": r.repository})
	}
	switch r.operation {
	case opBlob, opReferrers:
		return checkDigest(r.reference)
	case opUpload:
		if !uploadGrammar.MatchString(r.reference) {
			return fmt.Errorf("upload id %q: %w", r.reference, metadata.ErrUploadUnknown)
		}
	case opManifest:
		if r.byDigest() {
			return checkDigest(r.reference)
		}
		if tagGrammar.MatchString(r.reference) {
			return nil
		}
		if method == http.MethodPut {
			return refuse(errTagInvalid, "this is not a tag", map[string]string{"tag": r.reference})
		}
		return fmt.Errorf("tag %q: %w", r.reference, metadata.ErrTagUnknown)
	default:
	}
	return nil
}

// Paths of what a reply's Location names. They are relative to the host, since
// behind a balancer a node knows neither the scheme nor the name that the client
// used, and several clients refuse a Location on another host.
func blobPath(repository, digest string) string {
	return "/v2/" + repository + "/blobs/" + digest
}

func uploadPath(repository, id string) string {
	return "/v2/" + repository + "/blobs/uploads/" + id
}

func manifestPath(repository, digest string) string {
	return "/v2/" + repository + "/manifests/" + digest
}
