package gateway

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/proto"
)

// memoryAccounts is Accounts in maps.
type memoryAccounts struct {
	mu       sync.Mutex
	accounts map[string]*proto.Account
	policy   *policy.Compiled
	keys     []*proto.TokenKey
	catchUps int
	// catchUpErr makes CatchUp fail, and CatchUpForContent note that it is stale.
	catchUpErr error
	// availableReads makes CatchUpForNames CatchUpForContent.
	availableReads bool
}

func newMemoryAccounts(t testing.TB, text string) *memoryAccounts {
	t.Helper()
	m := &memoryAccounts{accounts: map[string]*proto.Account{}}
	m.setPolicy(t, text)
	m.addKey()
	return m
}

func (m *memoryAccounts) setPolicy(t testing.TB, text string) {
	t.Helper()
	parsed, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policy = policy.Compile(parsed)
}

// addKey makes a token key, which is the newest.
func (m *memoryAccounts) addKey() {
	m.mu.Lock()
	defer m.mu.Unlock()
	seed := make([]byte, 32)
	_, _ = rand.Read(seed)
	m.keys = append([]*proto.TokenKey{{Id: uint32(len(m.keys) + 1), Seed: seed}}, m.keys...)
}

// change changes an account as one command does.
func (m *memoryAccounts) change(name string, change func(*proto.Account)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := &proto.Account{Name: name, Kind: proto.AccountKind_ACCOUNT_KIND_USER, Generation: 1}
	if before := m.accounts[name]; before != nil {
		changed = pb.Clone(before).(*proto.Account)
	}
	change(changed)
	m.accounts[name] = changed
}

func (m *memoryAccounts) remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.accounts, name)
}

// addUser makes a user whose password is cheap to check.
func (m *memoryAccounts) addUser(t testing.TB, name, password string, groups ...string) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	m.change(name, func(a *proto.Account) { a.PasswordHash, a.Groups = hash, groups })
}

// addRobot makes a robot with one secret, which is returned.
func (m *memoryAccounts) addRobot(name string) (secret string) {
	secret, record := metadata.NewRobotSecret(time.Now(), 0)
	m.change(name, func(a *proto.Account) {
		a.Kind = proto.AccountKind_ACCOUNT_KIND_ROBOT
		a.Secrets = append(a.Secrets, record)
	})
	return secret
}

func (m *memoryAccounts) LocalAccount(name string) (*proto.Account, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if account := m.accounts[name]; account != nil {
		return account, nil
	}
	return nil, metadata.ErrAccountUnknown
}

func (m *memoryAccounts) LocalPolicy() *policy.Compiled {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.policy
}

func (m *memoryAccounts) TokenKeys() []*proto.TokenKey {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys
}

func (m *memoryAccounts) CatchUp(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.catchUps++
	return m.catchUpErr
}

func (m *memoryAccounts) CatchUpForNames(ctx context.Context) error {
	m.mu.Lock()
	available := m.availableReads
	m.mu.Unlock()
	if available {
		return m.CatchUpForContent(ctx)
	}
	return m.CatchUp(ctx)
}

func (m *memoryAccounts) CatchUpForContent(ctx context.Context) error {
	if m.CatchUp(ctx) != nil {
		metadata.NoteStale(ctx)
	}
	return nil
}
