package gateway

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/metadata/policy"
)

// Entries of a page of tags or repositories: when the client does not say, and at
// most.
const (
	defaultPageEntries = 1000
	maxPageEntries     = 10000
)

// page is which part of a list the client wants.
type page struct {
	// entries is at most so many; 0 for a client that wants none.
	entries int
	// after is the entry before the first; it need not exist.
	after string
}

// parsePage reads the n and last parameters.
func parsePage(query url.Values) (page, error) {
	p := page{entries: defaultPageEntries, after: query.Get("last")}
	if !query.Has("n") {
		return p, nil
	}
	n, ok := parseBytes(query.Get("n"))
	if !ok && isDigits(query.Get("n")) {
		n, ok = maxPageEntries, true // Too large for a number, but one.
	}
	if !ok {
		return page{}, refuse(errPageInvalid, "n is not a number of entries", map[string]string{"n": query.Get("n")})
	}
	p.entries = int(min(n, maxPageEntries))
	return p, nil
}

// limit is what to ask a list for: it is asked even if the client wants nothing,
// since the list may not exist.
func (p page) limit() int { return max(p.entries, 1) }

// cut takes from what the list answered what the client gets.
func (p page) cut(entries []string, more bool) ([]string, bool) {
	if p.entries == 0 {
		return []string{}, false
	}
	if entries == nil {
		entries = []string{} // JSON has [] for this, not null.
	}
	return entries, more && len(entries) > 0
}

// linkNext says where the next page is. The target is relative, since several
// clients refuse one on another host, and a node does not know by which name it
// was reached.
func (x *exchange) linkNext(path string, query url.Values) {
	x.w.Header().Set("Link", "<"+path+"?"+query.Encode()+`>; rel="next"`)
}

// listTags answers GET of a repository's tags.
func (g *gateway) listTags(ctx context.Context, x *exchange) error {
	p, err := parsePage(x.query)
	if err != nil {
		return err
	}
	watched, stale := metadata.WatchStale(ctx)
	tags, more, err := g.metadata.Tags(watched, x.repository, p.after, p.limit())
	if err != nil {
		return fmt.Errorf("list tags: %w", err)
	}
	if stale.Happened() {
		x.warnStale()
	}
	if tags, more = p.cut(tags, more); more {
		next := url.Values{"n": {strconv.Itoa(p.entries)}, "last": {tags[len(tags)-1]}}
		x.linkNext("/v2/"+x.repository+"/tags/list", next)
	}
	return x.replyJSON(http.StatusOK, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{x.repository, tags})
}

// listRepositories answers GET of the catalog.
func (g *gateway) listRepositories(ctx context.Context, x *exchange) error {
	p, err := parsePage(x.query)
	if err != nil {
		return err
	}
	watched, stale := metadata.WatchStale(ctx)
	repositories, more, err := g.readableRepositories(watched, x, p)
	if err != nil {
		return fmt.Errorf("list repositories: %w", err)
	}
	if stale.Happened() {
		x.warnStale()
	}
	if repositories, more = p.cut(repositories, more); more {
		next := url.Values{"n": {strconv.Itoa(p.entries)}, "last": {repositories[len(repositories)-1]}}
		x.linkNext("/v2/_catalog", next)
	}
	return x.replyJSON(http.StatusOK, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{repositories})
}

// readableRepositories returns the page's repositories that may be read, and whether
// there are more of them. Others are passed over, without a trace in the reply: not
// even that there are some.
func (g *gateway) readableRepositories(ctx context.Context, x *exchange, p page) (readable []string, more bool, err error) {
	if g.auth == nil || x.who.method == loginOperator {
		return g.metadata.Repositories(ctx, p.after, p.limit())
	}
	current := g.auth.Accounts.LocalPolicy()
	if !current.AnyRight(x.who.subject) {
		return nil, false, nil
	}
	for after, left := p.after, true; left; {
		var names []string
		if names, left, err = g.metadata.Repositories(ctx, after, maxPageEntries); err != nil {
			return nil, false, err
		}
		for _, name := range names {
			switch {
			case !current.Rights(x.who.subject, name).Has(policy.Pull):
			case len(readable) == p.limit():
				return readable, true, nil
			default:
				readable = append(readable, name)
			}
		}
		if len(names) == 0 {
			break
		}
		after = names[len(names)-1]
	}
	return readable, false, nil
}
