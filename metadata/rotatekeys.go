package metadata

import (
	"context"
	"errors"
	"fmt"
)

// RotateKeys makes new keys for tokens and for redirects until none is left of those
// that there were: for when somebody may have a copy of the state. All tokens are void
// then, and redirects that clients have not followed yet. A certificate for clients that
// came from an authority on the network is ordered anew, with another account. If it
// fails, some keys are new; it can be repeated. Errors: ErrUnavailable, ErrOutcomeUnknown.
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
	return s.reorderRegistryCertificate(ctx)
}

// reorderRegistryCertificate has the leader take the certificate for one of another
// authority, and order a new one. The old one is served until that has come.
func (s *Store) reorderRegistryCertificate(ctx context.Context) error {
	certificate, err := s.RegistryCertificate()
	if err == nil && certificate.GetRevision() > 0 {
		certificate.Directory = ""
		err = s.PutRegistryCertificate(ctx, certificate)
	}
	if errors.Is(err, ErrChanged) {
		err = fmt.Errorf("it is being changed this moment, try again: %w", err)
	}
	if err != nil {
		return fmt.Errorf("order the registry's certificate anew: %w", err)
	}
	return nil
}
