package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/crypto/bcrypt"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// countHashes has the hasher count what it computes.
func (s *authServer) countHashes() *atomic.Int64 {
	count := &atomic.Int64{}
	s.gateway.auth.hasher.check = func(hash []byte, password string) bool {
		count.Add(1)
		return checkPassword(hash, password)
	}
	return count
}

func TestLogIn(t *testing.T) {
	s := startAuth(t)
	s.accounts.addUser(t, "gone", "password of gone")
	s.accounts.change("gone", func(a *proto.Account) { a.Disabled = true })
	s.accounts.change("keyless", func(*proto.Account) {})
	expired := s.accounts.addRobot("old")
	s.accounts.change("old", func(a *proto.Account) { a.Secrets[0].ExpiresUnixMs = time.Now().Add(-time.Minute).UnixMilli() })
	second, _ := metadata.NewRobotSecret(time.Now(), 0)
	for _, c := range []struct {
		name string
		who  as
		want int
	}{
		{"user", user("alice"), 200},
		{"robot", basic("ci", s.robot), 200},
		{"other scheme's case", withHeader("Authorization", "bASIC YWxpY2U6cGFzc3dvcmQgb2YgYWxpY2U="), 200},
		{"wrong password", basic("alice", "password of bob"), 401},
		{"no password", basic("alice", ""), 401},
		{"no name", basic("", "password of alice"), 401},
		{"unknown", basic("mallory", "password of mallory"), 401},
		{"disabled", user("gone"), 401},
		{"without a password", basic("keyless", ""), 401},
		{"expired secret", basic("old", expired), 401},
		{"another robot's secret", basic("old", s.robot), 401},
		{"a user with a robot's secret", basic("alice", s.robot), 401},
		{"unknown secret", basic("ci", second), 401},
		{"not base64", withHeader("Authorization", "Basic %%%"), 401},
		{"no colon", withHeader("Authorization", "Basic YWxpY2U="), 401},
		{"unknown scheme", withHeader("Authorization", "Digest username=alice"), 401},
		{"control characters", basic("ali\x00ce\r\n", "x"), 401},
		{"long name", basic(strings.Repeat("a", 10000), "x"), 401},
		{"empty", basic("", ""), 401},
		{"nobody with a token", bearer(s.token(anonymously)), 200},
	} {
		if a := s.do(http.MethodGet, "/v2/", "", c.who); a.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, a.StatusCode, a.body, c.want)
		}
	}
	a := s.do(http.MethodGet, "/v2/", "", func(r *http.Request) {
		r.Header["Authorization"] = []string{"Basic YWxpY2U6cGFzc3dvcmQgb2YgYWxpY2U=", "Bearer x"}
	})
	if a.StatusCode != http.StatusUnauthorized {
		t.Errorf("two headers: %d", a.StatusCode)
	}
}

// TestPasswordsAreHashedOnce logs in again and again, and at once.
func TestPasswordsAreHashedOnce(t *testing.T) {
	s := startAuth(t)
	count := s.countHashes()
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() { s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("alice")) })
	}
	running.Wait()
	for range 8 {
		s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("alice"))
	}
	// Who asks while the answer comes in may start a second one.
	if n := count.Load(); n < 1 || n > 8 {
		t.Errorf("%d hashes for one password", n)
	}
	before := count.Load()
	s.pass(provenFor)
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("alice"))
	if n := count.Load() - before; n != 1 {
		t.Errorf("%d hashes after a while", n)
	}
	s.accounts.addUser(t, "alice", "changed", "team-a")
	s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", user("alice"))
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", basic("alice", "changed"))
}

// TestConcurrentHashesAreShared holds the first one until all others wait for it.
func TestConcurrentHashesAreShared(t *testing.T) {
	h := newHasher(newMetrics(nil, zerolog.Nop()).limit("logins"), time.Now)
	var count atomic.Int64
	release := make(chan struct{})
	h.check = func([]byte, string) bool {
		count.Add(1)
		<-release
		return true
	}
	const waiters = 16
	var arrived atomic.Int64
	var running sync.WaitGroup
	for range waiters {
		running.Go(func() {
			arrived.Add(1)
			if right, err := h.fits(t.Context(), "alice", []byte("hash"), "password"); !right || err != nil {
				t.Errorf("%t, %v", right, err)
			}
		})
	}
	eventually(t, patience, func() bool { return arrived.Load() == waiters && count.Load() == 1 })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.fits(gone, "alice", []byte("hash"), "password"); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that is gone: %v", err)
	}
	close(release)
	running.Wait()
	if n := count.Load(); n > 2 { // Whoever arrived but did not ask yet may start another.
		t.Errorf("%d hashes", n)
	}
}

// TestHashesAreBounded fills the queue: the rest is refused, not kept waiting.
func TestHashesAreBounded(t *testing.T) {
	h := newHasher(newMetrics(nil, zerolog.Nop()).limit("logins"), time.Now)
	h.running = newLimiter(1, time.Minute, errLoginsBusy, newMetrics(nil, zerolog.Nop()).limit("logins"))
	h.running.maxWaiting = 2
	release := make(chan struct{})
	var atOnce, most atomic.Int64
	h.check = func([]byte, string) bool {
		most.Store(max(most.Load(), atOnce.Add(1)))
		<-release
		atOnce.Add(-1)
		return true
	}
	var busy, right atomic.Int64
	var running sync.WaitGroup
	for i := range 10 {
		running.Go(func() {
			switch fits, err := h.fits(context.Background(), "alice", []byte{byte(i)}, "password"); {
			case errors.Is(err, errLoginsBusy):
				busy.Add(1)
			case err == nil && fits:
				right.Add(1)
			default:
				t.Errorf("%t, %v", fits, err)
			}
		})
	}
	eventually(t, patience, func() bool { return busy.Load() == 7 })
	close(release)
	running.Wait()
	if right.Load() != 3 || most.Load() != 1 {
		t.Errorf("%d were answered, %d at once", right.Load(), most.Load())
	}
}

// TestUnknownUsersCostTheSame counts hashes, which are what a login's time is made of.
func TestUnknownUsersCostTheSame(t *testing.T) {
	s := startAuth(t)
	s.accounts.change("keyless", func(*proto.Account) {})
	s.accounts.addUser(t, "gone", "password of gone")
	s.accounts.change("gone", func(a *proto.Account) { a.Disabled = true })
	secret, _ := metadata.NewRobotSecret(time.Now(), 0)
	count := s.countHashes()
	for _, name := range []string{"alice", "mallory", "ci", "keyless", "gone", "a*b"} {
		before := count.Load()
		a := s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", basic(name, "wrong"))
		if n := count.Load() - before; n != 1 {
			t.Errorf("%s: %d hashes", name, n)
		}
		if want := `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}` + "\n"; a.body != want {
			t.Errorf("%s: %s", name, a.body)
		}
		before = count.Load()
		s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", basic(name, secret))
		if n := count.Load() - before; n != 0 {
			t.Errorf("%s with a robot's secret: %d hashes", name, n)
		}
	}
}

// TestCheapHashesCostTheSame has users of a password file with other costs than that of
// accounts.
func TestCheapHashesCostTheSame(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	hash, err := bcrypt.GenerateFromPassword([]byte("of cheap"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	costly := strings.Replace(string(hash), "$04$", fmt.Sprintf("$%02d$", metadata.PasswordCost+1), 1)
	lines := "cheap:" + string(hash) + "\ncostly:" + costly + "\n"
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	users, err := OpenHtpasswd(file, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	s := startAuth(t, func(cfg *Config) { cfg.Auth.Htpasswd = users })
	work := 0
	s.gateway.auth.hasher.spend = func(cost int) { work += 1 << cost }
	s.gateway.auth.hasher.check = func(hash []byte, password string) bool {
		cost := metadata.PasswordCost
		if hash != nil {
			cost, _ = bcrypt.Cost(hash)
		}
		work += 1 << cost
		return password == "of cheap"
	}
	for _, name := range []string{"cheap", "costly", "alice", "mallory"} {
		work = 0
		s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", basic(name, "wrong"))
		if want := 1 << (metadata.PasswordCost + 1); work != want {
			t.Errorf("%s: %d rounds of bcrypt, want %d", name, work, want)
		}
	}
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", basic("cheap", "of cheap"))
}

// TestFailedLoginsHaveToWait tries out passwords.
func TestFailedLoginsHaveToWait(t *testing.T) {
	s := startAuth(t)
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("alice")) // Found right before.
	for range failuresPerMinute {
		s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", basic("alice", "wrong"))
	}
	count := s.countHashes()
	a := s.want(http.StatusTooManyRequests, http.MethodGet, "/v2/", "", basic("alice", "wrong"))
	if a.Header.Get("Retry-After") == "" || a.code() != codeTooManyRequests || count.Load() != 0 {
		t.Errorf("%v %s, %d hashes", a.Header, a.body, count.Load())
	}
	s.want(http.StatusTooManyRequests, http.MethodGet, "/token", "", basic("alice", "wrong"))
	// Neither others at the same address nor what is known to be right have to wait.
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("alice"))
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("bob"))
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", basic("ci", s.robot))
	s.pass(time.Minute / failuresPerMinute)
	s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", basic("alice", "wrong"))
	s.want(http.StatusTooManyRequests, http.MethodGet, "/v2/", "", basic("alice", "wrong"))
}

// TestThrottle has one address fail under many names, and memory stay bounded.
func TestThrottle(t *testing.T) {
	start := time.Now()
	at := func(after time.Duration) func() time.Time { return func() time.Time { return start.Add(after) } }
	th := newThrottle(newMetrics(nil, zerolog.Nop()).limit("failed_logins"))
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	try := func(client netip.Addr, name string, after time.Duration, failed bool) error {
		leave, err := th.enter(client, name, at(after))
		if err == nil {
			leave(failed)
		}
		return err
	}
	for i := range addressFailuresPerMinute {
		if err := try(here, string(rune('a'+i)), 0, true); err != nil {
			t.Fatalf("failure %d: %v", i, err)
		}
	}
	if err := try(here, "new", 0, false); !errors.Is(err, errLoginThrottled) {
		t.Errorf("the address: %v", err)
	}
	if err := try(there, "new", 0, false); err != nil {
		t.Errorf("another address: %v", err)
	}
	if err := try(here, "new", time.Minute, false); err != nil {
		t.Errorf("later: %v", err)
	}
	for range failuresPerMinute {
		if err := try(there, "alice", 0, true); err != nil {
			t.Error(err)
		}
	}
	if err := try(there, "alice", 0, false); !errors.Is(err, errLoginThrottled) {
		t.Errorf("a name: %v", err)
	}
	th.succeeded(there, "alice")
	if err := try(there, "alice", 0, false); err != nil {
		t.Errorf("after the right password: %v", err)
	}
	if n := len(th.trying); n != 0 {
		t.Errorf("%d checks go on", n)
	}
	th.failures.Resize(10)
	for i := range 100 {
		if err := try(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), strings.Repeat("x", 1<<20), 0, true); err != nil {
			t.Error(err)
		}
	}
	if n := th.failures.Len(); n > 10 {
		t.Errorf("%d are remembered", n)
	}
	for _, key := range th.failures.Keys() {
		if len(key.name) > 2*maxNameBytes {
			t.Errorf("a name of %d bytes is remembered", len(key.name))
		}
	}
}

func writeHtpasswd(t *testing.T, file string, users map[string]string) {
	t.Helper()
	var text strings.Builder
	for name, password := range users {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(name + ":" + string(hash) + "\n")
	}
	if err := os.WriteFile(file, []byte("# Users.\n\n"+text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestHtpasswd logs in by a password file, and changes it.
func TestHtpasswd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	writeHtpasswd(t, file, map[string]string{"dora": "of dora", "alice": "of the file"})
	users, err := OpenHtpasswd(file, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	s := startAuth(t, func(cfg *Config) { cfg.Auth.Htpasswd = users })
	status := func(who as) int { return s.do(http.MethodGet, "/v2/", "", who).StatusCode }
	if got := status(basic("dora", "of dora")); got != http.StatusOK {
		t.Errorf("user of the file: %d", got)
	}
	if got := status(basic("alice", "of the file")); got != http.StatusUnauthorized {
		t.Errorf("user that an account hides: %d", got)
	}
	token := bearer(s.token(basic("dora", "of dora")))
	users.refresh()
	if got := status(token); got != http.StatusOK {
		t.Errorf("token: %d", got)
	}
	if err := os.WriteFile(file, []byte("dora:{SHA}secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	users.refresh()
	if got := status(basic("dora", "of dora")); got != http.StatusOK {
		t.Errorf("after a file that can't be used: %d", got)
	}
	writeHtpasswd(t, file, map[string]string{"dora": "changed"})
	users.refresh()
	for name, who := range map[string]as{"old password": basic("dora", "of dora"), "token of the old password": token} {
		if got := status(who); got != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, got)
		}
	}
	if got := status(basic("dora", "changed")); got != http.StatusOK {
		t.Errorf("new password: %d", got)
	}
}

func TestParseHtpasswd(t *testing.T) {
	costly := "$2y$31$" + strings.Repeat("a", 53)
	for line, want := range map[string]string{
		"alice":                     "not NAME:HASH",
		":x":                        "not NAME:HASH",
		"alice:$apr1$secret$secret": "not bcrypt",
		"alice:{SHA}secret":         "not bcrypt",
		"alice:secret":              "not bcrypt",
		"alice:" + costly:           "cost 31",
		"a:" + strings.Replace(costly, "31", "04", 1) + "\na:" + strings.Replace(costly, "31", "04", 1): "twice",
	} {
		_, err := parseHtpasswd([]byte(line))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", line, err)
		}
	}
	if _, err := OpenHtpasswd(filepath.Join(t.TempDir(), "none"), zerolog.Nop()); err == nil {
		t.Error("a file that is not there was opened")
	}
}

// TestLogInByCertificate shows certificates that were verified in the handshake.
func TestLogInByCertificate(t *testing.T) {
	s := startAuth(t, func(cfg *Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	s.accounts.addUser(t, "gone", "password of gone")
	s.accounts.change("gone", func(a *proto.Account) { a.Disabled = true })
	for _, c := range []struct {
		name, from, path string
		want             int
	}{
		{"alice", "192.0.2.1:1", "/v2/", 200},
		{"alice", "192.0.2.1:1", "/token?offline_token=true", 200},
		{"alice", "192.0.2.1:1", "/v2/b/app/tags/list", 403},
		{"alice", "192.0.2.1:1", "/v2/a/app/tags/list", 404},
		{"alice", "10.0.0.1:1", "/v2/", 401}, // The proxy's own.
		{"gone", "192.0.2.1:1", "/v2/", 401},
		{"stranger", "192.0.2.1:1", "/v2/", 401},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.RemoteAddr = c.from
		chain := []*x509.Certificate{{Subject: pkix.Name{CommonName: c.name}}}
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{chain}}
		w := httptest.NewRecorder()
		s.gateway.ServeHTTP(w, r)
		if strings.Contains(w.Body.String(), "refresh_token") {
			t.Errorf("%s got a refresh token", c.name)
		}
		if w.Code != c.want {
			t.Errorf("%s from %s: %s: %d %s, want %d", c.name, c.from, c.path, w.Code, w.Body, c.want)
		}
	}
}

// TestLoginsAreCounted logs in, right and wrong, and reads the metric.
func TestLoginsAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := startAuth(t, func(cfg *Config) { cfg.Metrics = registry })
	token := s.token(user("alice"))
	s.token(basic("ci", s.robot))
	s.token(anonymously)
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", bearer(token))
	s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", basic("alice", "wrong"))
	s.want(http.StatusUnauthorized, http.MethodGet, "/token", "", basic("mallory", "wrong"))
	s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "")
	logins := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]float64{}
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				if family.GetName() == "atoll_gateway_logins_total" {
					found[metric.GetLabel()[0].GetValue()+" "+metric.GetLabel()[1].GetValue()] = metric.GetCounter().GetValue()
				}
			}
		}
		return found
	}
	want := map[string]float64{"password ok": 1, "robot ok": 1, "unknown denied": 2}
	eventually(t, patience, func() bool { return logins()["unknown denied"] == 2 })
	if got := logins(); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
