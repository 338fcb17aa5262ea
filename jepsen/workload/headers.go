package workload

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/atollregistry/atoll/jepsen/registry"
)

// blobType is the type of every blob.
const blobType = "application/octet-stream"

// facts are what the headers of a reply about content must say.
type facts struct {
	digest    string
	mediaType string
	// size is how many bytes the reply has, or would have if it had a body.
	size int
}

// check says what is wrong with the headers of a reply, or nothing.
func (f facts) check(reply *registry.Reply) string {
	for _, one := range []struct{ name, want string }{
		{"Docker-Content-Digest", f.digest},
		{"Content-Type", f.mediaType},
		{"Content-Length", strconv.Itoa(f.size)},
	} {
		if told := reply.Header.Get(one.name); told != one.want {
			return fmt.Sprintf("%s is %q, not %q", one.name, told, one.want)
		}
	}
	return ""
}

// checkCreated says what is wrong with a reply that has acknowledged some content (201), or nothing.
func checkCreated(reply *registry.Reply, digest string) string {
	if reply == nil || reply.Status != http.StatusCreated {
		return ""
	}
	if told := reply.Header.Get("Docker-Content-Digest"); told != digest {
		return fmt.Sprintf("%s %s: acknowledged with Docker-Content-Digest %q", foundWrong, digest, told)
	}
	return ""
}
