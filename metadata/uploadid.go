package metadata

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// The id of an upload tells that it was begun: an upload has a record only from its first bytes
// on, so that to begin one costs no command. It is a UUID of version 8 (RFC 9562, section 5.8):
//
//	bits
//	  48  when it was begun, in Unix milliseconds
//	   4  version
//	  12  random
//	   2  variant
//	  38  random
//	  24  check: of the 104 bits before, repository and owner, as SHA-256 begins
//
// The check keeps what was made up, or begun in another repository or by somebody else, from being taken for an upload of
// theirs. It is no secret: who may push to a repository may begin uploads there.
const (
	uploadTimeBytes  = 6
	uploadCheckBytes = 3
	uploadIDVersion  = 8
)

// newUploadID returns the id of an upload to the repository that the owner begins now.
func newUploadID(repository, owner string, now time.Time) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:], uint64(now.UnixMilli())<<(64-8*uploadTimeBytes))
	_, _ = rand.Read(id[uploadTimeBytes:]) // It does not fail.
	id[6] = uploadIDVersion<<4 | id[6]&0x0f
	id[8] = 0x80 | id[8]&0x3f
	check := uploadCheck(id, repository, owner)
	copy(id[len(id)-uploadCheckBytes:], check[:])
	return id.String()
}

// uploadBegun returns when the owner began the upload to the repository with that id, in Unix milliseconds, if he did.
func uploadBegun(id, repository, owner string) (unixMS int64, ok bool) {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed.String() != id || parsed.Version() != uploadIDVersion {
		return 0, false
	}
	if [uploadCheckBytes]byte(parsed[len(parsed)-uploadCheckBytes:]) != uploadCheck(parsed, repository, owner) {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(parsed[:]) >> (64 - 8*uploadTimeBytes)), true
}

func uploadCheck(id uuid.UUID, repository, owner string) (check [uploadCheckBytes]byte) {
	digest := sha256.New()
	digest.Write(id[:len(id)-uploadCheckBytes])
	digest.Write([]byte(repository + "\x00" + owner))
	copy(check[:], digest.Sum(nil))
	return check
}

// mayBegin reports whether an upload that has no record may get one: within ageLimitMS milliseconds of its beginning. One that a
// clock that is ahead began is no older than now.
func mayBegin(id, repository, owner string, nowUnixMS int64, ageLimitMS uint64) bool {
	begun, ok := uploadBegun(id, repository, owner)
	return ok && (begun > nowUnixMS || uint64(nowUnixMS-begun) < ageLimitMS)
}
