package metadata

import (
	"context"

	"github.com/atollregistry/atoll/proto"
)

// ensureRepository makes the repository exist. The first blob or manifest does;
// an upload that was only begun does not.
func (c *change) ensureRepository(repository string) error {
	exists, err := c.has(bucketRepositories, keyOf(repository))
	if err != nil || exists {
		return err
	}
	return c.put(bucketRepositories, keyOf(repository), &proto.Repository{CreatedUnixMs: c.now})
}

// needRepository refuses a command on a repository that does not exist.
func (c *change) needRepository(repository string) error {
	exists, err := c.has(bucketRepositories, keyOf(repository))
	if err == nil && !exists {
		err = refuse(proto.Refusal_REFUSAL_REPOSITORY_UNKNOWN, "repository %q", repository)
	}
	return err
}

// missing is the answer to a read that found nothing in the repository:
// ErrRepositoryUnknown if there is no such repository, else unknown.
func (v view) missing(repository string, unknown error) error {
	exists, err := v.has(bucketRepositories, keyOf(repository))
	if err == nil && !exists {
		return ErrRepositoryUnknown
	}
	if err != nil {
		return err
	}
	return unknown
}

// Repositories returns at most limit names that come after the given one, in the
// order of their bytes, and whether there are more. Error: ErrUnavailable.
func (s *Store) Repositories(ctx context.Context, after string, limit int) (repositories []string, more bool, err error) {
	limit = pageLimit(limit)
	err = s.readNamed(ctx, func(v view) error {
		repositories, more, err = v.rests(bucketRepositories, span{after: []byte(after)}, limit)
		return err
	})
	return repositories, more, err
}

// maxPage bounds how many names one call returns; callers get more by asking
// again.
const maxPage = 10_000

func pageLimit(limit int) int { return max(0, min(limit, maxPage)) }
