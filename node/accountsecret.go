package node

import (
	"fmt"
	"slices"
	"time"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// setPassword gives a user a password: the one that was chosen, or one that is made and
// returned.
func setPassword(record *atoll.Account, chosen Secret) (made Secret, err error) {
	if record.Kind != atoll.AccountKind_ACCOUNT_KIND_USER {
		return "", refusal(fmt.Sprintf("%s is a robot and has no password: 'atoll robot rotate %s' makes it another secret", record.Name, record.Name))
	}
	if chosen == "" {
		made = Secret(metadata.NewPassword())
		chosen = made
	}
	hash, err := metadata.HashPassword(string(chosen))
	if err != nil {
		return "", refusal(err.Error())
	}
	record.PasswordHash = hash
	return made, nil
}

// addSecret gives a robot another secret, good for ttl, 0 for ever. Those that count no
// more make room.
func addSecret(record *atoll.Account, now time.Time, ttl time.Duration) (made Secret, err error) {
	switch {
	case record.Kind != atoll.AccountKind_ACCOUNT_KIND_ROBOT:
		return "", refusal(fmt.Sprintf("%s is a user and has no secrets: 'atoll user passwd %s' changes the password", record.Name, record.Name))
	case ttl < 0:
		return "", refusal(fmt.Sprintf("a secret can't count for %v: give a time, or none for ever", ttl))
	}
	record.Secrets = slices.DeleteFunc(record.Secrets, func(s *atoll.AccountSecret) bool {
		return s.ExpiresUnixMs != 0 && s.ExpiresUnixMs <= now.UnixMilli()
	})
	if len(record.Secrets) >= metadata.MaxSecrets {
		return "", refusal(fmt.Sprintf("%s has %d secrets that count, and no more fit: 'atoll robot revoke %s ID' takes one away", record.Name, len(record.Secrets), record.Name))
	}
	secret, added := metadata.NewRobotSecret(now, ttl)
	record.Secrets = append(record.Secrets, added)
	return Secret(secret), nil
}

// rotateSecrets gives a robot another secret, and those that it has an end.
func rotateSecrets(record *atoll.Account, now time.Time, rotation Rotation) (made Secret, err error) {
	if rotation.Keep < 0 {
		return "", refusal(fmt.Sprintf("secrets can't be kept for %v", rotation.Keep))
	}
	ttl := time.Duration(0)
	switch {
	case rotation.TTL != nil:
		ttl = *rotation.TTL
	case len(record.Secrets) > 0:
		if newest := record.Secrets[len(record.Secrets)-1]; newest.ExpiresUnixMs != 0 {
			// For as long as it was to count when it was made, whatever has become of it.
			ttl = time.Duration(newest.ExpiresUnixMs-newest.CreatedUnixMs) * time.Millisecond
		}
	}
	end := now.Add(rotation.Keep).UnixMilli()
	for _, secret := range record.Secrets {
		if secret.ExpiresUnixMs == 0 || secret.ExpiresUnixMs > end {
			secret.ExpiresUnixMs = end
		}
	}
	return addSecret(record, now, ttl)
}

// revokeSecret takes a secret away from a robot.
func revokeSecret(record *atoll.Account, id string) error {
	i := slices.IndexFunc(record.Secrets, func(s *atoll.AccountSecret) bool { return s.Id == id })
	if i < 0 {
		return refusal(fmt.Sprintf("%s has no secret %q: 'atoll robot list' shows those that it has", record.Name, id))
	}
	record.Secrets = slices.Delete(record.Secrets, i, i+1)
	return nil
}
