package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/singleflight"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

const (
	// maxProven and provenFor bound what is remembered of passwords that were found
	// right.
	maxProven = 1 << 14
	provenFor = 10 * time.Minute
	// hashWait is how long a login waits for its turn to be hashed, and
	// waitingPerHash how many may wait for one that runs: a hash takes some 60 ms.
	hashWait       = 5 * time.Second
	waitingPerHash = 64
)

// hasher finds out whether a password fits a bcrypt hash. That costs much on purpose,
// so that only some are tried at once, one for all who ask the same, and what was
// found right is remembered: by a keyed hash, so that the memory has no passwords.
type hasher struct {
	secret  [32]byte // Of this process.
	proven  *lru.Cache[[sha256.Size]byte, time.Time]
	flight  singleflight.Group
	running *limiter
	now     func() time.Time
	// check is what costs; tests count it. Without a hash it costs the same as with one
	// of metadata.PasswordCost.
	check func(hash []byte, password string) bool
	// cost is bcrypt's of the costliest hash, and spend does the work of one; see level.
	cost  func() int
	spend func(cost int)
}

func newHasher(m limitMetrics, now func() time.Time) *hasher {
	proven, err := lru.New[[sha256.Size]byte, time.Time](maxProven)
	if err != nil {
		panic(err) // Unreachable: it only fails for a size that is not positive.
	}
	atOnce := int64(max(1, runtime.GOMAXPROCS(0)/2)) // Transfers go on meanwhile.
	h := &hasher{proven: proven, running: newLimiter(atOnce, hashWait, errLoginsBusy, m), now: now, check: checkPassword, spend: spendHash}
	h.cost = func() int { return metadata.PasswordCost }
	h.running.maxWaiting = waitingPerHash * atOnce
	_, _ = rand.Read(h.secret[:]) // Never fails: see its documentation.
	return h
}

func checkPassword(hash []byte, password string) bool {
	_, right := metadata.CheckLogin(&proto.Account{PasswordHash: hash}, password, time.Time{})
	return right
}

// known reports whether the password was found right for the hash lately.
func (h *hasher) known(name string, hash []byte, password string) bool {
	since, found := h.proven.Get(h.key(name, hash, password))
	return found && h.now().Sub(since) < provenFor
}

// fits finds out whether the password is right for the hash that somebody has; nil if
// nobody has the name. It fails with errLoginsBusy if that would take too long, and with
// the context's error.
func (h *hasher) fits(ctx context.Context, name string, hash []byte, password string) (bool, error) {
	key := h.key(name, hash, password)
	answer := h.flight.DoChan(string(key[:]), func() (any, error) {
		// Not the context of the one who happened to be first. The limiter bounds it.
		release, err := h.running.acquire(context.Background(), 1)
		if err != nil {
			return false, err
		}
		defer release()
		right := h.check(hash, password)
		h.level(hash)
		if right {
			h.proven.Add(key, h.now())
		}
		return right, nil
	})
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case result := <-answer:
		right, _ := result.Val.(bool)
		return right, result.Err
	}
}

// level does the rest of the work that looking at the costliest hash would have taken:
// the cost of a hash would tell else who has one, such as all users of a password file
// that has another cost than that of accounts, and of nobody. One more is twice the work.
func (h *hasher) level(hash []byte) {
	cost := metadata.PasswordCost
	if len(hash) > 0 {
		cost, _ = bcrypt.Cost(hash) // Both sources of hashes have them checked.
	}
	for ; cost < h.cost(); cost++ {
		h.spend(cost)
	}
}

func spendHash(cost int) { _, _ = bcrypt.GenerateFromPassword([]byte("nobody's"), cost) }

// key is what stands for a name, its hash and a password in memory. The name belongs to
// it since those who do not exist all have the same hash, none: if they shared a flight,
// and so took less time together than two who do exist, that would tell who does.
func (h *hasher) key(name string, hash []byte, password string) (key [sha256.Size]byte) {
	mac := hmac.New(sha256.New, h.secret[:])
	for _, part := range []string{name, string(hash)} {
		mac.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		mac.Write([]byte(part))
	}
	mac.Write([]byte(password))
	mac.Sum(key[:0])
	return key
}
