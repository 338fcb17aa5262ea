package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// audited is a registry with an audit log.
type audited struct {
	*authServer
	log  *AuditLog
	file string
}

func startAudited(t *testing.T, configure ...func(*Config)) *audited {
	t.Helper()
	a := &audited{file: filepath.Join(t.TempDir(), "audit.log")}
	var err error
	if a.log, err = OpenAuditLog(a.file, "n1", zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.log.Close() })
	a.authServer = startAuth(t, append(configure, func(cfg *Config) { cfg.Audit = a.log })...)
	return a
}

// records reads what a file has by now.
func (a *audited) records(file string) (records []AuditRecord) {
	a.t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		a.t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		var record AuditRecord
		if line == "\n" {
			continue
		}
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			a.t.Fatalf("%q: %v", line, err)
		}
		records = append(records, record)
	}
	return records
}

// next makes a request and returns the record of it. Records come after replies.
func (a *audited) next(request func()) AuditRecord {
	a.t.Helper()
	before := len(a.records(a.file))
	request()
	eventually(a.t.(*testing.T), patience, func() bool { return len(a.records(a.file)) > before })
	all := a.records(a.file)
	if len(all) != before+1 {
		a.t.Fatalf("%d records of one request: %+v", len(all)-before, all[before:])
	}
	return all[before]
}

// TestAudit writes down every kind of request that belongs in the log.
func TestAudit(t *testing.T) {
	a := startAudited(t)
	digest := digestOf(sha256Algorithm, []byte("blob"))
	index := digestOf(sha256Algorithm, []byte(emptyIndex))
	manifest := withHeader("Content-Type", indexType)
	root := basic("root", "password of root")
	var token string
	for _, c := range []struct {
		name    string
		request func()
		want    AuditRecord
	}{
		{"login", func() { a.want(200, "GET", "/v2/", "", root) },
			AuditRecord{Event: eventLogin, Result: resultOK, Subject: "user:root", Method: "password", Request: "GET", Status: 200}},
		{"token", func() { token = a.token(user("alice"), "repository:a/app:pull,push,delete") },
			AuditRecord{Event: eventLogin, Result: resultOK, Subject: "user:alice", Method: "password", Token: "*", Scope: "repository:a/app:pull,push", Request: "GET", Status: 200}},
		{"wrong password", func() { a.want(401, "GET", "/token", "", basic("alice", "hunter2")) },
			AuditRecord{Event: eventLogin, Result: resultDenied, Login: "alice", Request: "GET", Status: 401, Code: codeUnauthorized}},
		{"wrong password on a route", func() { a.want(401, "GET", "/v2/a/app/tags/list", "", basic("al\nice", "hunter2")) },
			AuditRecord{Event: eventLogin, Result: resultDenied, Login: "al\nice", Repository: "a/app", Request: "GET", Status: 401, Code: codeUnauthorized}},
		{"rubbish token", func() { a.want(401, "GET", "/v2/a/app/tags/list", "", bearer("rubbish")) },
			AuditRecord{Event: eventDenied, Result: resultDenied, Repository: "a/app", Request: "GET", Status: 401, Code: codeUnauthorized}},
		{"push", func() { a.push(bearer(token), "a/app", "blob") },
			AuditRecord{Event: eventPush, Result: resultOK, Subject: "user:alice", Method: "password", Token: "*", Repository: "a/app", Digest: digest, Request: "POST", Status: 201}},
		{"upload", func() { a.want(202, "POST", "/v2/a/app/blobs/uploads/", "", basic("ci", a.robot)) },
			AuditRecord{Event: eventUpload, Result: resultOK, Subject: "robot:ci", Method: "robot", Repository: "a/app", Upload: "upload-1", Request: "POST", Status: 202}},
		{"bytes", func() { a.want(202, "PATCH", "/v2/a/app/blobs/uploads/upload-1", "blob", basic("ci", a.robot)) },
			AuditRecord{Event: eventUpload, Result: resultOK, Subject: "robot:ci", Method: "robot", Repository: "a/app", Upload: "upload-1", Request: "PATCH", Status: 202}},
		{"end of an upload", func() {
			a.want(201, "PUT", "/v2/a/app/blobs/uploads/upload-1?digest="+digest, "", basic("ci", a.robot))
		},
			AuditRecord{Event: eventPush, Result: resultOK, Subject: "robot:ci", Method: "robot", Repository: "a/app", Upload: "upload-1", Digest: digest, Request: "PUT", Status: 201}},
		{"mount", func() { a.want(201, "POST", "/v2/b/app/blobs/uploads/?from=a%2Fapp&mount="+digest, "", root) },
			AuditRecord{Event: eventMount, Result: resultOK, Subject: "user:root", Method: "password", Repository: "b/app", Digest: digest, From: "a/app", Request: "POST", Status: 201}},
		{"manifest", func() { a.want(201, "PUT", "/v2/a/app/manifests/v1", emptyIndex, root, manifest) },
			AuditRecord{Event: eventPush, Result: resultOK, Subject: "user:root", Method: "password", Repository: "a/app", Tags: []string{"v1"}, Digest: index, Request: "PUT", Status: 201}},
		{"manifest with tags", func() { a.want(201, "PUT", "/v2/a/app/manifests/"+index+"?tag=x&tag=y", emptyIndex, root, manifest) },
			AuditRecord{Event: eventPush, Result: resultOK, Subject: "user:root", Method: "password", Repository: "a/app", Tags: []string{"x", "y"}, Digest: index, Request: "PUT", Status: 201}},
		{"denied push", func() { a.want(403, "PUT", "/v2/b/app/manifests/v1", emptyIndex, bearer(token), manifest) },
			AuditRecord{Event: eventPush, Result: resultDenied, Subject: "user:alice", Method: "password", Token: "*", Repository: "b/app", Tags: []string{"v1"}, Request: "PUT", Status: 403, Code: codeDenied}},
		{"failed push", func() { a.want(400, "PUT", "/v2/a/app/manifests/v1", "{", root, manifest) },
			AuditRecord{Event: eventPush, Result: resultFailed, Subject: "user:root", Method: "password", Repository: "a/app", Tags: []string{"v1"}, Request: "PUT", Status: 400, Code: codeManifestInvalid}},
		{"denied pull", func() { a.want(403, "GET", "/v2/b/app/manifests/v1", "", bearer(token)) },
			AuditRecord{Event: eventDenied, Result: resultDenied, Subject: "user:alice", Method: "password", Token: "*", Repository: "b/app", Tags: []string{"v1"}, Request: "GET", Status: 403, Code: codeDenied}},
		{"delete", func() { a.want(202, "DELETE", "/v2/a/app/manifests/v1", "", root) },
			AuditRecord{Event: eventDelete, Result: resultOK, Subject: "user:root", Method: "password", Repository: "a/app", Tags: []string{"v1"}, Request: "DELETE", Status: 202}},
		{"delete of a blob", func() { a.want(202, "DELETE", "/v2/b/app/blobs/"+digest, "", root) },
			AuditRecord{Event: eventDelete, Result: resultOK, Subject: "user:root", Method: "password", Repository: "b/app", Digest: digest, Request: "DELETE", Status: 202}},
		{"no name", func() { a.want(400, "PUT", "/v2/%1b[2J%0a/manifests/v1", emptyIndex, root, manifest) },
			AuditRecord{Event: eventPush, Result: resultFailed, Repository: "\x1b[2J\n", Tags: []string{"v1"}, Request: "PUT", Status: 400, Code: codeNameInvalid}},
	} {
		got := a.next(c.request)
		if got.Client != "127.0.0.1" || got.RequestID == "" || got.Node != "n1" || time.Since(got.Time) > time.Minute || (got.Reason == "") != (got.Status < 400) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if c.want.Token == "*" && got.Token != "" {
			c.want.Token = got.Token
		}
		got.Client, got.RequestID, got.Node, got.Time, got.Reason = "", "", "", time.Time{}, ""
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%s:\n%+v, want\n%+v", c.name, got, c.want)
		}
	}
	content, err := os.ReadFile(a.file)
	if err != nil || strings.ContainsAny(string(content), "\x1b\x00\r") {
		t.Errorf("the log has control characters, or %v", err)
	}
}

// TestAuditLeavesOut makes requests that do not belong in the log, unless the operator
// wants to know what is pulled.
func TestAuditLeavesOut(t *testing.T) {
	for _, pulls := range []bool{false, true} {
		a := startAudited(t, func(cfg *Config) { cfg.AuditPulls = pulls })
		digest := a.push(user("root"), "public/app", "blob")
		token := a.token(anonymously, "repository:public/app:pull")
		a.want(401, "GET", "/v2/", "")
		a.want(401, "POST", "/v2/a/app/blobs/uploads/", "")
		a.want(200, "GET", "/v2/", "", bearer(token))
		a.want(401, "GET", "/v2/_catalog", "", bearer(token))
		a.want(404, "GET", "/v2/public/app/manifests/v1", "", bearer(token))
		a.want(200, "GET", "/v2/public/app/blobs/"+digest, "", bearer(token))
		a.want(200, "HEAD", "/v2/public/app/blobs/"+digest, "", bearer(token))
		a.want(404, "GET", "/nothing", "")
		a.want(405, "PATCH", "/v2/", "")
		a.push(user("root"), "public/app", "the end")
		want := []string{eventPush, eventPush}
		if pulls {
			want = []string{eventPush, eventPull, eventPull, eventPush}
		}
		eventually(t, patience, func() bool { return len(a.records(a.file)) >= len(want) })
		var got []string
		for _, record := range a.records(a.file) {
			got = append(got, record.Event)
		}
		if !slices.Equal(got, want) {
			t.Errorf("with pulls %t: %q", pulls, got)
		}
	}
}

// TestNoSecretIsLogged logs in in all ways, right and wrong, and looks for what was
// secret in all logs and replies.
func TestNoSecretIsLogged(t *testing.T) {
	var log safeBuffer
	a := startAudited(t, func(cfg *Config) { cfg.Logger, cfg.AuditPulls = zerolog.New(&log), true })
	a.metadata.keys = []*proto.SigningKey{{Id: 1, Secret: []byte("a signing key")}}
	stranger, _ := metadata.NewRobotSecret(time.Now(), 0)
	reply := a.tokens(user("alice"), url.Values{"scope": {"repository:a/app:pull,push"}, "offline_token": {"true"}})
	digest := a.push(bearer(reply.Token), "a/app", "blob")
	signature := signBlob(a.metadata.keys[0], "a/app", digest, time.Now().Add(time.Hour))
	wrong := "wrong-password-5f2c"
	secrets := []string{"password of alice", wrong, a.robot, stranger, reply.Token, reply.RefreshToken, "Basic ", "Bearer ", "atoll-signature", "cGFzc3dvcmQ"}
	for _, request := range []func() answer{
		func() answer { return a.do("GET", "/v2/", "", user("alice")) },
		func() answer { return a.do("GET", "/v2/", "", basic("alice", wrong)) },
		func() answer { return a.do("GET", "/v2/a/app/tags/list", "", basic("ci", a.robot)) },
		func() answer { return a.do("GET", "/v2/a/app/tags/list", "", basic("ci", stranger)) },
		func() answer { return a.do("PUT", "/v2/a/app/manifests/v1", "{", bearer(reply.RefreshToken)) },
		func() answer { return a.do("PUT", "/v2/a/app/manifests/v1", "{", bearer(reply.Token+"x")) },
		func() answer { return a.do("GET", "/v2/a/app/blobs/"+digest+"?"+signature, "") },
		func() answer { return a.do("GET", "/v2/a/app/blobs/"+digest+"?"+signature+"0", "") },
		func() answer { return a.do("GET", "/v2/a/app/tags/list?token="+reply.Token, "", user("alice")) },
		func() answer {
			return a.postForm(url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {wrong}})
		},
		func() answer {
			return a.postForm(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {reply.RefreshToken + "x"}})
		},
		func() answer { return a.do("POST", "/token?password="+wrong, "password="+wrong) },
	} {
		got := request()
		for _, secret := range secrets[:7] {
			if strings.Contains(got.body, secret) {
				t.Errorf("%s is in the reply %s", secret, got.body)
			}
		}
	}
	eventually(t, patience, func() bool { return strings.Count(log.String(), "\n") >= 14 })
	content, err := os.ReadFile(a.file)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"audit log": string(content), "access log": log.String()} {
		if !strings.Contains(text, "a/app") {
			t.Errorf("the %s is empty", name)
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%q is in the %s", secret, name)
			}
		}
	}
}

// TestAuditLogIsRotated moves the file away while many write: no line is lost.
func TestAuditLogIsRotated(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	log, err := OpenAuditLog(file, "n1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var running sync.WaitGroup
	for i := range 4 {
		running.Go(func() {
			for j := range 100 {
				if err := log.Write(AuditRecord{RequestID: fmt.Sprintf("%d-%d", i, j)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 5 {
		if err := os.Rename(file, fmt.Sprintf("%s.%d", file, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	running.Wait()
	if err := os.Rename(file, file+".last"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := log.Write(AuditRecord{RequestID: "after"}); err != nil {
		t.Fatal(err)
	}
	a := &audited{authServer: &authServer{t: t}}
	if got := a.records(file); len(got) != 1 || got[0].RequestID != "after" {
		t.Errorf("the new file has %+v", got)
	}
	files, err := filepath.Glob(file + "*")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		for _, record := range a.records(file) {
			seen[record.RequestID] = true
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}
	if len(seen) != 401 {
		t.Errorf("%d lines of 401 are there", len(seen))
	}
}

// fullDisk is a file that can't be written while full is set.
type fullDisk struct {
	safeBuffer
	full bool
}

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.full {
		return 0, errors.New("no space left on device")
	}
	return d.safeBuffer.Write(p)
}

// hungDisk is a file whose writes take as long as hung has no value for them.
type hungDisk struct {
	safeBuffer
	hung chan struct{}
}

func (d *hungDisk) Write(p []byte) (int, error) {
	<-d.hung
	return d.safeBuffer.Write(p)
}

// TestAuditLogHangs has a line take for ever: one waits for it for a while, nobody else does, and
// when it is through all goes on.
func TestAuditLogHangs(t *testing.T) {
	var log safeBuffer
	disk := &hungDisk{hung: make(chan struct{})}
	audit := newAuditLog(AuditStdout, "n1", zerolog.New(&log), disk)
	audit.patience = 50 * time.Millisecond
	if err := audit.Write(AuditRecord{Event: "first"}); !errors.Is(err, errAuditHangs) {
		t.Errorf("a write to a disk that hangs: %v", err)
	}
	audit.patience = time.Hour // From now on nobody may wait at all.
	if err := audit.Ready(time.Now()); !errors.Is(err, errAuditHangs) {
		t.Errorf("it is ready: %v", err)
	}
	if err := audit.Write(AuditRecord{Event: "second"}); !errors.Is(err, errAuditHangs) {
		t.Errorf("a second write: %v", err)
	}
	if err := audit.Close(); !errors.Is(err, errAuditHangs) {
		t.Errorf("close: %v", err)
	}
	for _, event := range []string{"first", "second"} {
		if !strings.Contains(log.String(), `"event":"`+event+`"`) {
			t.Errorf("the node's own log has no line for the %s", event)
		}
	}
	close(disk.hung)
	eventually(t, patience, func() bool { return audit.Ready(time.Now()) == nil })
	if err := audit.Write(AuditRecord{Event: "third"}); err != nil {
		t.Error(err)
	}
	if got := disk.String(); !strings.Contains(got, `"event":"first"`) || !strings.Contains(got, `"event":"third"`) {
		t.Errorf("the audit log has %s", got)
	}
}

// TestNothingIsWrittenUnrecorded has the audit log fail: the line goes to the node's
// log, and until lines can be written, nothing that has to be recorded is done.
func TestNothingIsWrittenUnrecorded(t *testing.T) {
	var log safeBuffer
	disk := &fullDisk{}
	audit := newAuditLog(AuditStdout, "n1", zerolog.New(&log), disk)
	s := startAuth(t, func(cfg *Config) { cfg.Audit = audit })
	digest := s.push(user("alice"), "a/app", "blob")
	token := bearer(s.token(user("alice"), "repository:a/app:pull,push"))
	fill := func(full bool) {
		if err := audit.inTurn(func() error { disk.full = full; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, patience, func() bool { return strings.Count(disk.String(), "\n") == 2 })
	fill(true)
	s.push(token, "a/app", "the last")
	eventually(t, patience, func() bool { return strings.Contains(log.String(), `"audit":{`) })
	uploads := s.metadata.count("NewUpload")
	for range 3 {
		a := s.want(http.StatusServiceUnavailable, http.MethodPost, "/v2/a/app/blobs/uploads/", "", token)
		if a.code() != codeUnavailable || a.Header.Get("Retry-After") == "" {
			t.Errorf("%v %s", a.Header, a.body)
		}
	}
	if got := s.metadata.count("NewUpload"); got != uploads {
		t.Error("an upload was begun")
	}
	s.want(http.StatusServiceUnavailable, http.MethodGet, "/token", "", user("alice"))
	s.want(http.StatusOK, http.MethodGet, "/v2/a/app/blobs/"+digest, "", token)
	fill(false)
	s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", token)
	eventually(t, patience, func() bool { return strings.Contains(disk.String(), `"event":"upload"`) })
	if !strings.Contains(disk.String(), `"event":"audit log"`) {
		t.Errorf("it is not said that it goes on: %s", disk.String())
	}
}

// TestAuditTellsWhatWasMounted has clients say that a blob is from elsewhere.
func TestAuditTellsWhatWasMounted(t *testing.T) {
	a := startAudited(t)
	own := a.push(user("alice"), "a/app", "of team a")
	evil := digestOf(sha256Algorithm, []byte("evil"))
	a.push(user("root"), "public/base", "of all")
	public := digestOf(sha256Algorithm, []byte("of all"))
	eventually(t, patience, func() bool { return len(a.records(a.file)) == 2 })
	uploads := "/v2/a/app/blobs/uploads/?"
	for _, c := range []struct {
		name, query, body string
		event, from       string
		digest            string
	}{
		{"from where it was not", "mount=" + own + "&from=b/secret", "", eventMount, "", own},
		{"from nowhere that can be named", "mount=" + own + "&from=" + strings.Repeat("x", 9999), "", eventMount, "", own},
		{"from anywhere", "mount=" + public, "", eventMount, "public/base", public},
		{"a push that looks like a mount", "mount=" + someDigest + "&from=public/base&digest=" + evil, "evil", eventPush, "", evil},
	} {
		got := a.next(func() { a.want(http.StatusCreated, http.MethodPost, uploads+c.query, c.body, user("alice")) })
		if got.Event != c.event || got.From != c.from || got.Digest != c.digest {
			t.Errorf("%s: %s of %s from %q, want %s of %s from %q", c.name, got.Event, got.Digest, got.From, c.event, c.digest, c.from)
		}
	}
}

// goneWriter is the connection of a client that went away.
type goneWriter struct{ *httptest.ResponseRecorder }

func (goneWriter) Write([]byte) (int, error) { return 0, errors.New("connection reset") }

// TestAuditOfTheGone has clients go away before the reply, so that what they have done
// looks like a failure.
func TestAuditOfTheGone(t *testing.T) {
	a := startAudited(t)
	a.metadata.fail["PutManifest"] = fmt.Errorf("%w: %w", metadata.ErrOutcomeUnknown, context.Canceled)
	for status, gone := range map[int]bool{http.StatusServiceUnavailable: false, statusClientGone: true} {
		got := a.next(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if gone {
				cancel()
			}
			r := httptest.NewRequestWithContext(ctx, http.MethodPut, "/v2/a/app/manifests/v1", strings.NewReader(emptyIndex))
			r.Header.Set("Content-Type", indexType)
			r.SetBasicAuth("ci", a.robot)
			defer func() { _ = recover() }() // The connection is cut.
			a.gateway.ServeHTTP(httptest.NewRecorder(), r)
		})
		if got.Result != resultUnknown || got.Status != status || got.Event != eventPush {
			t.Errorf("a push that may have been carried out: %+v", got)
		}
	}
	got := a.next(func() {
		r := httptest.NewRequest(http.MethodGet, "/token", nil)
		r.SetBasicAuth("ci", a.robot)
		a.gateway.ServeHTTP(goneWriter{httptest.NewRecorder()}, r)
	})
	if got.Result != resultOK || got.Status != statusClientGone || got.Event != eventLogin {
		t.Errorf("a token that was given out: %+v", got)
	}
}
