package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

const (
	listingClients      = 6
	listingRepositories = 2
	// listingTags is how many tags a repository may have: porcupine's sets have to be small.
	listingTags = 12
	// listingPage is how many tags of a page.
	listingPage = 3
	// catalogPage is how many repositories of a page of the catalog.
	catalogPage = 10
	// maxExtra bounds how many repositories are made for nothing but the catalog.
	maxExtra = 50
	// maxPages bounds how many pages one list may have: more than the workload fills.
	maxPages = 200

	// The kinds of operations of this workload beyond those of the models, which keep to one
	// repository as the key. Input and Output are as with those.
	kindPages   = "pages"   // the tags in several pages
	kindCreate  = "create"  // key: catalogKey; Input: the repository
	kindCatalog = "catalog" // key: catalogKey; Output: the workload's repositories
	catalogKey  = "_catalog"
)

// listing makes and deletes tags and repositories, and lists them.
type listing struct {
	common
	repositories *rotation
}

// NewListing returns the workload of lists. Those in one page are a view of one moment; those
// in several have what was there all the time.
func NewListing() Workload {
	w := &listing{common: newCommon("listing")}
	w.repositories = newRotation(listingRepositories, func(n int) string { return fmt.Sprintf("%s/tags-%04d", w.name, n) })
	return w
}

// Run implements Workload. Repositories are set up by the clients, since that is in the catalog.
func (w *listing) Run(ctx context.Context, env *Env) error {
	return drive(ctx, env, w.name, listingClients, w.pause, w.step)
}

func (w *listing) step(ctx context.Context, s *Session) error {
	slot, release := w.repositories.hold(s.Rand.IntN(listingRepositories))
	defer release()
	repository := newRepository(slot.key, w.found)
	if !w.repositories.isPrepared(slot) {
		if w.create(ctx, s, repository) && repository.anchor(ctx, s) {
			w.repositories.prepared(slot)
		}
		return nil
	}
	op := &history.Op{Key: slot.key}
	switch n := s.Rand.IntN(100); {
	case n < 30:
		op.Kind, op.Input = kindPut, member(s.Rand.IntN(listingTags))
		content, _ := repository.manifest(note(s, op.Input))
		repository.put(ctx, s, op, op.Input, content)
	case n < 50:
		op.Kind, op.Input = kindDelete, member(s.Rand.IntN(listingTags))
		repository.remove(ctx, s, op, op.Input)
	case n < 75:
		w.list(ctx, s, op)
	case n < 88:
		op.Kind = kindPages
		w.follow(ctx, s, op, tagsPath(slot.key)+fmt.Sprintf("?n=%d", listingPage), listingPage)
	case n < 97:
		op = w.catalog(ctx, s)
	default:
		w.createExtra(ctx, s)
		return nil
	}
	w.repositories.note(slot, op, "")
	s.History.Add(*op)
	return nil
}

// create makes a repository by pushing a blob, and says whether it is there.
func (w *listing) create(ctx context.Context, s *Session, r *repository) bool {
	op := &history.Op{Kind: kindCreate, Key: catalogKey, Input: r.name}
	r.pushBlob(ctx, s, op, r.config)
	s.History.Add(*op)
	return op.Outcome == history.OK
}

// createExtra makes a repository for the catalog alone.
func (w *listing) createExtra(ctx context.Context, s *Session) {
	n := s.Rand.IntN(maxExtra)
	w.create(ctx, s, newRepository(fmt.Sprintf("%s/extra-%04d", w.name, n), w.found))
}

func tagsPath(repository string) string { return "/v2/" + repository + "/tags/list" }

// list asks for all tags in one page.
func (w *listing) list(ctx context.Context, s *Session, op *history.Op) {
	op.Kind = kindList
	w.follow(ctx, s, op, tagsPath(op.Key), 0)
	if _, ok := membersOf(op.Output); op.Outcome == history.OK && !ok {
		w.found.add(WrongBytes, "%s: the list has tags that were never pushed: %s (%s, %s)", op.Key, op.Output, op.Node, seconds(op.Return))
		op.Outcome = history.Unknown
	}
}

// catalog asks for the repositories of this workload, in pages.
func (w *listing) catalog(ctx context.Context, s *Session) *history.Op {
	op := &history.Op{Kind: kindCatalog, Key: catalogKey}
	query := url.Values{"n": {fmt.Sprint(catalogPage)}, "last": {w.name}}
	w.follow(ctx, s, op, "/v2/_catalog?"+query.Encode(), catalogPage)
	return op
}

// follow reads a list page by page; a page has entries at most, 0 for all in one. The list
// becomes op's Output. op is OK only if every page was answered.
func (w *listing) follow(ctx context.Context, s *Session, op *history.Op, path string, entries int) {
	var names []string
	begun := s.History.Now()
	op.Outcome = history.Unknown
	for range maxPages {
		reply, err := s.Do(ctx, op, http.MethodGet, path, nil)
		op.Call = begun
		if err != nil {
			return
		}
		if reply.Status != http.StatusOK {
			w.judgeList(op, reply)
			return
		}
		page, err := namesOf(reply.Body)
		if err != nil || entries > 0 && len(page) > entries {
			w.found.add(WrongBytes, "%s: a page of at most %d entries (0: all) is %q (%s, %s)", op.Key, entries, reply.Body, op.Node, seconds(op.Return))
			return
		}
		names = append(names, page...)
		next, more := nextPage(path, reply.Header.Get("Link"))
		beyond := op.Kind == kindCatalog && len(names) > 0 && !strings.HasPrefix(names[len(names)-1], w.name+"/")
		if !more || beyond {
			w.finish(op, names)
			return
		}
		if entries == 0 || len(page) == 0 {
			break
		}
		path = next
	}
	w.found.add(WrongBytes, "%s: a list goes on for ever, or when all was asked for (%s, %s)", op.Key, op.Node, seconds(op.Return))
}

// finish makes the names of all pages op's Output, if they are in order.
func (w *listing) finish(op *history.Op, names []string) {
	if !slices.IsSortedFunc(names, strings.Compare) || len(slices.Compact(slices.Clone(names))) < len(names) {
		w.found.add(WrongBytes, "%s: %s has doubles or is not sorted: %s (%s, %s)", op.Key, op.Kind, strings.Join(names, ","), op.Node, seconds(op.Return))
		return
	}
	if op.Kind == kindCatalog {
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, w.name+"/") })
	}
	op.Outcome, op.Output = history.OK, strings.Join(names, ",")
}

// judgeList judges the refusal of a list of a repository that is there.
func (w *listing) judgeList(op *history.Op, reply *registry.Reply) {
	if reply.Status == http.StatusNotFound {
		w.found.add(Lost, "%s: the repository, acknowledged before, is unknown: %s (%s, %s)", op.Key, op.Error, op.Node, seconds(op.Return))
		return
	}
	newRepository(op.Key, w.found).judgeRefusal(op, reply, nil)
}

// namesOf returns the tags or repositories in the body of a list.
func namesOf(body []byte) ([]string, error) {
	var list struct {
		Tags         []string `json:"tags"`
		Repositories []string `json:"repositories"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	if (list.Tags == nil) == (list.Repositories == nil) {
		return nil, errors.New("list: not one of tags and repositories")
	}
	return append(list.Tags, list.Repositories...), nil
}

// nextPage returns the path and query that a Link header leads to from a page, if there is a next page. The
// header may have a whole URL, or one that begins where the page is.
func nextPage(page, link string) (path string, more bool) {
	target, rest, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !strings.Contains(rest, `rel="next"`) {
		return "", false
	}
	base, err := url.Parse(page)
	if err != nil {
		return "", false
	}
	next, err := base.Parse(target)
	if err != nil {
		return "", false
	}
	return next.RequestURI(), true
}
