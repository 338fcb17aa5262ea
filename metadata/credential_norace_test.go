//go:build !race

package metadata

import (
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// An account that does not exist takes as long as one with another password: within a
// factor that the noise of a busy machine explains, while without the stand-in it would
// be a factor of thousands.
func TestUnknownAccountsTakeAsLong(t *testing.T) {
	hash, err := HashPassword("right password")
	if err != nil {
		t.Fatal(err)
	}
	nobodysHash()
	fastest := func(account *proto.Account, password string) time.Duration {
		best := time.Hour
		for range 3 {
			begin := time.Now()
			CheckLogin(account, password, begin)
			best = min(best, time.Since(begin))
		}
		return best
	}
	known := &proto.Account{PasswordHash: hash}
	wrong := fastest(known, "wrong password")
	for name, took := range map[string]time.Duration{
		"unknown account":  fastest(nil, "wrong password"),
		"robot's account":  fastest(&proto.Account{Secrets: []*proto.AccountSecret{{Id: "a"}}}, "wrong password"),
		"too long":         fastest(known, strings.Repeat("x", 100)),
		"disabled account": fastest(&proto.Account{Disabled: true, PasswordHash: hash}, "right password"),
	} {
		if took < wrong/10 || took > wrong*10 {
			t.Errorf("%s takes %v, a wrong password %v", name, took, wrong)
		}
	}
}
