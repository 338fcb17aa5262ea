package bench

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Workload is one kind of operation that is done over and over again.
type Workload struct {
	Name string
	// Summary says what one operation is.
	Summary string
	// Bulk means that bytes are what matters: results are told per GB, not per operation.
	Bulk bool
	// pull means that it only reads blobs, which could be static files.
	pull bool
	// cold means that it may read each blob only once a turn.
	cold bool
	// chunks means that Config.Chunk counts.
	chunks bool
	// work makes it ready for one registry.
	work func(*target) work
}

// work is a workload made ready for one registry. Prepare and heat may be nil.
type work struct {
	// prepare pushes what operations need, once, before the first turn.
	prepare func(ctx context.Context) error
	// heat is done before each turn, after the command that the user has for that.
	heat func(ctx context.Context) error
	// operation does one, by its number, and returns how many bytes of blobs it moved.
	// All clients call it at once.
	operation func(ctx context.Context, n uint64) (moved int64, err error)
	// alone means that one operation is itself the work of all clients.
	alone bool
	// most is how many operations a turn may have; 0 for no bound of its own.
	most int
}

// Workloads are all that there are.
func Workloads() []Workload {
	return []Workload{
		{Name: "push-stream", Summary: "push a blob as docker does: POST, PATCH without a length, PUT", Bulk: true, work: pushStream},
		{Name: "push-put", Summary: "push a blob by POST and one PUT", Bulk: true, work: pushPut},
		{Name: "push-chunked", Summary: "push a blob by POST, a PATCH for each chunk of --chunk bytes, PUT", Bulk: true, chunks: true, work: pushChunked},
		{Name: "pull", Summary: "GET a blob; all were read through every node before, or with --cold none", Bulk: true, pull: true, cold: true, work: pull},
		{Name: "pull-herd", Summary: "GET one blob by all clients at once; it ends when the last has it", Bulk: true, pull: true, cold: true, work: pullHerd},
		{Name: "pull-range", Summary: "GET --chunk bytes from a random place of a blob", Bulk: true, pull: true, chunks: true, work: pullRange},
		{Name: "head-tag", Summary: "HEAD a manifest by its tag", work: headTag},
		{Name: "get-tag", Summary: "GET a manifest by its tag", work: getTag},
		{Name: "put-tag", Summary: "PUT a manifest to a tag, which each time is another one than before", work: putTag},
		{Name: "list-tags", Summary: "GET the list of tags, all pages", work: listTags},
		{Name: "image", Summary: "push an image of 3 layers of 16 KiB, none of which is known, as docker does", work: pushImages},
	}
}

// find returns the workload of a name.
func find(name string) (Workload, error) {
	all := Workloads()
	i := slices.IndexFunc(all, func(w Workload) bool { return w.Name == name })
	if i < 0 {
		return Workload{}, fmt.Errorf("there is no workload %q", name)
	}
	return all[i], nil
}

// each calls do for 0 to n-1, as many at once as there are clients, and ends with the first error.
func (t *target) each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(t.config.Clients)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, t.config.Timeout)
			defer cancel()
			return do(ctx, i)
		})
	}
	return group.Wait()
}
