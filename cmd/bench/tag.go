package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
)

// maxPages bounds how long a list may go on.
const maxPages = 10_000

// tagName is the name of a tag by its number.
func tagName(number int) string { return "t" + strconv.Itoa(number) }

// tags are those of one target.
type tags struct {
	*target
	// manifests are two, so that each PUT of a tag can change what it is.
	manifests [2][]byte
}

// prepareManifests pushes two images, without tags.
func (t *tags) prepareManifests(ctx context.Context) error {
	layers, err := t.content.family(layerBytes)
	if err != nil {
		return err
	}
	return t.each(ctx, len(t.manifests), func(ctx context.Context, i int) (err error) {
		var parts []blob
		for range 2 {
			b, err := t.newBlob(layers)
			if err != nil {
				return err
			}
			if err := t.push(ctx, t.base(0), &b, putWhole); err != nil {
				return err
			}
			parts = append(parts, b)
		}
		t.manifests[i], err = manifestOf(parts)
		return err
	})
}

// count is how many tags there are.
func (t *tags) count() int { return cmp.Or(t.Tags, t.config.Tags) }

// prepare has as many tags as are wanted.
func (t *tags) prepare(ctx context.Context) error {
	if err := t.prepareManifests(ctx); err != nil {
		return err
	}
	return t.each(ctx, t.count(), func(ctx context.Context, i int) error {
		return t.putManifest(ctx, t.base(uint64(i)), tagName(i), t.manifests[0])
	})
}

// putManifest sends a manifest to a tag.
func (t *target) putManifest(ctx context.Context, base, tag string, manifest []byte) error {
	_, _, err := t.client.exchange(ctx, manifestCall(base, tag, manifest))
	return err
}

// asking does a request for one tag after the other.
func (t *tags) asking(method string) work {
	return work{prepare: t.prepare, operation: func(ctx context.Context, n uint64) (int64, error) {
		tag, lap := pick(n, t.count())
		_, body, err := t.client.exchange(ctx, call{
			method: method, url: t.baseOf(tag, lap) + "/manifests/" + tagName(tag),
			header: []string{"Accept", manifestType}, want: []int{http.StatusOK},
		})
		if err == nil && method == http.MethodGet && len(body) != len(t.manifests[0]) {
			err = fmt.Errorf("GET tag: %w: %d bytes, the manifest has %d", errLength, len(body), len(t.manifests[0]))
		}
		return 0, err
	}}
}

func headTag(t *target) work { return (&tags{target: t}).asking(http.MethodHead) }

func getTag(t *target) work { return (&tags{target: t}).asking(http.MethodGet) }

// putTag moves one tag after the other, there in one lap and back in the next.
func putTag(target *target) work {
	t := &tags{target: target}
	return work{prepare: t.prepareManifests, operation: func(ctx context.Context, n uint64) (int64, error) {
		tag, lap := pick(n, t.count())
		return 0, t.putManifest(ctx, t.baseOf(tag, lap), tagName(tag), t.manifests[lap%2])
	}}
}

// listTags reads the whole list in each operation, and counts.
func listTags(target *target) work {
	t := &tags{target: target}
	return work{prepare: t.prepare, operation: func(ctx context.Context, n uint64) (int64, error) {
		listed := 0
		next := t.base(n) + "/tags/list"
		for range maxPages {
			names, following, err := t.listPage(ctx, next)
			if err != nil {
				return 0, err
			}
			listed += names
			if next = following; next == "" {
				break
			}
		}
		if listed != t.count() {
			return 0, fmt.Errorf("list tags: %w: %d tags, there are %d", errLength, listed, t.count())
		}
		return 0, nil
	}}
}

// nextLink is the URL of the next page in a header Link (RFC 8288).
var nextLink = regexp.MustCompile(`<([^>]*)>\s*;\s*rel="?next"?`)

// listPage reads one page, and returns the URL of the next, or none.
func (t *tags) listPage(ctx context.Context, page string) (names int, next string, err error) {
	response, body, err := t.client.exchange(ctx, call{method: http.MethodGet, url: page, want: []int{http.StatusOK}})
	if err != nil {
		return 0, "", err
	}
	var list struct {
		Tags []json.RawMessage `json:"tags"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return 0, "", fmt.Errorf("GET %s: %w", page, err)
	}
	if link := nextLink.FindStringSubmatch(response.Header.Get("Link")); link != nil {
		reference, err := url.Parse(link[1])
		if err != nil {
			return 0, "", fmt.Errorf("GET %s: next page: %w", page, err)
		}
		next = response.Request.URL.ResolveReference(reference).String()
	}
	return len(list.Tags), next, nil
}
