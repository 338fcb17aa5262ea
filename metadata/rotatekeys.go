package metadata

import (
	"context"
	"fmt"
)

// RotateKeys makes new keys for tokens and for redirects until none is left of those
// that there were: for when somebody may have a copy of the state. All tokens are void
// then, and redirects that clients have not followed yet. If it fails, some keys are
// new; it can be repeated. Errors: ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) RotateKeys(ctx context.Context) error {
	for _, kind := range []struct {
		kept int
		add  func(context.Context) error
	}{{tokenKeysKept, s.addTokenKey}, {signingKeysKept, s.addSigningKey}} {
		for range kind.kept {
			// The next key's number follows from what this node knows. If another node is
			// first, there is one more new key all the same.
			if err := s.CatchUp(ctx); err != nil {
				return fmt.Errorf("rotate keys: %w", err)
			}
			if err := kind.add(ctx); err != nil {
				return fmt.Errorf("rotate keys: %w", err)
			}
		}
	}
	return nil
}
