package metadata

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/atollregistry/atoll/proto"
)

// People have passwords, which can be guessed, so that they are kept as bcrypt hashes
// that cost time to check. Robots have secrets of 32 random bytes, which can't, so that
// a fast hash will do, and a pipeline's every request may bring one.

const (
	// MinPasswordBytes is the shortest password (NIST SP 800-63B, 5.1.1.2).
	MinPasswordBytes = 8
	// MaxPasswordBytes is the longest password. bcrypt looks at no more, so that a longer
	// one would be as good as its beginning: it is refused instead.
	MaxPasswordBytes = 72
	// PasswordCost is bcrypt's of accounts' passwords, and of names that nobody has. It makes one check some 50 ms of work for a core, for us and for whoever
	// guesses.
	PasswordCost = 10
)

const (
	// secretPrefix lets people, and programs that look for secrets in source code,
	// recognise a robot's secret.
	secretPrefix = "atoll_"
	secretBytes  = 32
)

// secretEncoding has no padding to lose: 36 bytes are 48 characters.
var secretEncoding = base64.RawURLEncoding.Strict()

// HashPassword returns what is kept of a password. The error says what is wrong with
// the password, without the password.
func HashPassword(password string) ([]byte, error) {
	switch {
	case len(password) < MinPasswordBytes:
		return nil, fmt.Errorf("password has %d bytes, fewer than %d: choose a longer one", len(password), MinPasswordBytes)
	case len(password) > MaxPasswordBytes:
		return nil, fmt.Errorf("password has %d bytes, more than %d: choose a shorter one", len(password), MaxPasswordBytes)
	case strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return nil, errors.New("password has a control character, such as a line break: choose one without, clients could not send it")
	case IsRobotSecret(password):
		return nil, errors.New("password is a robot's secret: choose one of its own")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), PasswordCost)
	if err != nil {
		return nil, fmt.Errorf("hash password: %w", err)
	}
	return hash, nil
}

// NewPassword returns a password that can't be guessed, for somebody who has chosen
// none: 26 letters and digits.
func NewPassword() string { return rand.Text() }

// NewRobotSecret makes a robot's secret and the record of it, good for ttl, or for
// ever if that is 0. The secret is nowhere but in the return value. Its id is made of
// its hash: whoever finds a secret somewhere can tell which one it is.
func NewRobotSecret(now time.Time, ttl time.Duration) (secret string, record *proto.AccountSecret) {
	content := make([]byte, secretBytes, secretBytes+crc32.Size)
	_, _ = rand.Read(content) // Never fails: see its documentation.
	content = binary.BigEndian.AppendUint32(content, secretChecksum(content))
	secret = secretPrefix + secretEncoding.EncodeToString(content)
	sum := sha256.Sum256([]byte(secret))
	record = &proto.AccountSecret{Id: hex.EncodeToString(sum[:4]), Sha256: sum[:], CreatedUnixMs: now.UnixMilli()}
	if ttl > 0 {
		record.ExpiresUnixMs = now.Add(ttl).UnixMilli()
	}
	return secret, record
}

func secretChecksum(content []byte) uint32 {
	return crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli))
}

// IsRobotSecret reports whether a text has the form of a robot's secret: prefix, length
// and checksum. One that was cut or mistyped has not.
func IsRobotSecret(text string) bool {
	encoded, found := strings.CutPrefix(text, secretPrefix)
	if !found || len(encoded) != secretEncoding.EncodedLen(secretBytes+crc32.Size) {
		return false
	}
	content, err := secretEncoding.DecodeString(encoded)
	return err == nil && binary.BigEndian.Uint32(content[secretBytes:]) == secretChecksum(content[:secretBytes])
}

// CheckLogin reports whether a password or a robot's secret is that of an account at a
// time, and which secret it is, "" for a password. The account is nil if nobody has the
// name; a disabled one has nothing that is right.
//
// How long it takes depends on the form of what was sent and on nothing else, so that
// nobody learns which names exist: what has the form of a robot's secret costs a fast
// hash, everything else one bcrypt, 50 ms of a core. A caller bounds how many of those
// run at a time; IsRobotSecret tells which it will be.
func CheckLogin(account *proto.Account, secret string, now time.Time) (secretID string, ok bool) {
	if IsRobotSecret(secret) {
		secretID, ok = checkRobotSecret(account, secret, now)
	} else {
		ok = checkPassword(account, secret)
	}
	if account.GetDisabled() {
		return "", false
	}
	return secretID, ok
}

func checkRobotSecret(account *proto.Account, secret string, now time.Time) (id string, ok bool) {
	sum := sha256.Sum256([]byte(secret))
	for i := range MaxSecrets { // as many times for everybody
		record := &proto.AccountSecret{Sha256: make([]byte, sha256.Size)}
		if secrets := account.GetSecrets(); i < len(secrets) {
			record = secrets[i]
		}
		same := subtle.ConstantTimeCompare(record.GetSha256(), sum[:]) == 1
		if same && secretCounts(record, now.UnixMilli()) {
			id, ok = record.GetId(), true
		}
	}
	return id, ok
}

// nobodysHash is the hash that stands in for that of an account which has none. Nobody
// knows its password.
var nobodysHash = sync.OnceValue(func() []byte {
	hash, err := bcrypt.GenerateFromPassword([]byte(NewPassword()), PasswordCost)
	if err != nil {
		panic("hash a password of 26 bytes: " + err.Error()) // the cost is ours, the length is right
	}
	return hash
})

func checkPassword(account *proto.Account, password string) bool {
	hash, known := account.GetPasswordHash(), true
	if len(hash) == 0 {
		hash, known = nobodysHash(), false
	}
	if len(password) > MaxPasswordBytes { // bcrypt would look at its beginning only, or refuse at once
		password, known = password[:MaxPasswordBytes], false
	}
	right := bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil
	return right && known
}
