package metadata

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/atollregistry/atoll/proto"
)

// hashQuickly is HashPassword without its cost.
func hashQuickly(t testing.TB, password string) []byte {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

func TestCheckLoginByPassword(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", MaxPasswordBytes)
	user := func(password string) *proto.Account {
		return &proto.Account{Name: "alice", PasswordHash: hashQuickly(t, password)}
	}
	disabled := user("right password")
	disabled.Disabled = true
	for name, test := range map[string]struct {
		account  *proto.Account
		password string
		want     bool
	}{
		"right":                      {user("right password"), "right password", true},
		"wrong":                      {user("right password"), "wrong password", false},
		"another case":               {user("right password"), "Right password", false},
		"none sent":                  {user("right password"), "", false},
		"none set":                   {&proto.Account{Name: "alice"}, "", false},
		"unknown account":            {nil, "right password", false},
		"disabled":                   {disabled, "right password", false},
		"longest":                    {user(long), long, true},
		"more behind the longest":    {user(long), long + "y", false},
		"hash sent for the password": {user("right password"), string(user("right password").GetPasswordHash()), false},
	} {
		if id, ok := CheckLogin(test.account, test.password, time.Now()); ok != test.want || id != "" {
			t.Errorf("%s: login is good: %v (secret %q)", name, ok, id)
		}
	}
}

func TestCheckLoginBySecret(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000)
	first, firstRecord := NewRobotSecret(now, 0)
	second, secondRecord := NewRobotSecret(now, time.Hour)
	robot := &proto.Account{Name: "ci", Secrets: []*proto.AccountSecret{firstRecord, secondRecord}}
	disabled := &proto.Account{Name: "ci", Disabled: true, Secrets: robot.GetSecrets()}
	other, _ := NewRobotSecret(now, 0)
	for name, test := range map[string]struct {
		account *proto.Account
		secret  string
		after   time.Duration
		want    string
	}{
		"one":                 {robot, first, 0, firstRecord.GetId()},
		"another":             {robot, second, 0, secondRecord.GetId()},
		"one without an end":  {robot, first, 1e6 * time.Hour, firstRecord.GetId()},
		"just before its end": {robot, second, time.Hour - time.Millisecond, secondRecord.GetId()},
		"at its end":          {robot, second, time.Hour, ""},
		"somebody else's":     {robot, other, 0, ""},
		"cut":                 {robot, first[:len(first)-1], 0, ""},
		"unknown account":     {nil, first, 0, ""},
		"user's account":      {&proto.Account{PasswordHash: hashQuickly(t, first)}, first, 0, ""},
		"disabled":            {disabled, first, 0, ""},
	} {
		id, ok := CheckLogin(test.account, test.secret, now.Add(test.after))
		if id != test.want || ok != (test.want != "") {
			t.Errorf("%s: login is good: %v, by %q", name, ok, id)
		}
	}
}

func TestRobotSecretsAreRecognised(t *testing.T) {
	t.Parallel()
	secret, record := NewRobotSecret(time.Now(), 0)
	if !IsRobotSecret(secret) || len(secret) != len("atoll_")+48 || !IsAccountName(record.GetId()) {
		t.Errorf("secret of %d characters, id %q", len(secret), record.GetId())
	}
	again, _ := NewRobotSecret(time.Now(), 0)
	if again == secret {
		t.Error("two secrets are the same")
	}
	for i := range len(secret) { // any single mistake shows
		wrong := []byte(secret)
		wrong[i] = 'A'
		if secret[i] == 'A' {
			wrong[i] = 'B'
		}
		if IsRobotSecret(string(wrong)) {
			t.Errorf("character %d changed and nobody noticed", i)
		}
	}
	for _, text := range []string{"", "atoll_", secret + "A", secret[1:], secret + "\n", strings.ToUpper(secret)} {
		if IsRobotSecret(text) {
			t.Errorf("%q is a secret", text)
		}
	}
}

func TestHashPasswordRefuses(t *testing.T) {
	t.Parallel()
	secret, _ := NewRobotSecret(time.Now(), 0)
	for _, password := range []string{"", "1234567", strings.Repeat("x", 73), "with\na line", "tab\tinside", secret} {
		hash, err := HashPassword(password)
		if err == nil {
			t.Errorf("%q became %q", password, hash)
		} else if password != "" && strings.Contains(err.Error(), password) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	for _, password := range []string{NewPassword(), "pässwörter"} {
		hash, err := HashPassword(password)
		if err != nil {
			t.Error(err)
		}
		if _, ok := CheckLogin(&proto.Account{PasswordHash: hash}, password, time.Now()); !ok {
			t.Errorf("%q is not its own password", password)
		}
		if cost, err := bcrypt.Cost(hash); err != nil || cost != PasswordCost {
			t.Errorf("cost is %d (%v)", cost, err)
		}
	}
}
