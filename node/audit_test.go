package node

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/gateway"
)

// Whatever an operator does with the cluster's keys and members is written down, and keys
// are not changed while it can't be.
func TestOperatorIsAudited(t *testing.T) {
	m := startMember(t)
	folder := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "audit.log")
	audit, err := gateway.OpenAuditLog(file, "n1", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer audit.Close()
	a := &admin{store: m.store, machine: m.log.machine, registry: http.NotFoundHandler(), audit: audit, log: zerolog.Nop(),
		peers: newPeers(m.folder.identity.ID, nil, m.store.LocalNodes, zerolog.Nop())}
	ask := func(method, path string) int {
		answer := httptest.NewRecorder()
		a.handler().ServeHTTP(answer, httptest.NewRequest(method, path, nil))
		return answer.Code
	}
	ask(http.MethodPost, "/keys/rotate")
	ask(http.MethodGet, "/backup")
	ask(http.MethodPost, "/remove?node=n7&force=true")
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{"keys rotate", "backup", "node remove"} {
		if strings.Count(string(written), `"event":"`+event+`"`) != 1 {
			t.Errorf("%q is not written down once: %s", event, written)
		}
	}

	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	ask(http.MethodGet, "/backup") // finds out that it can't be written down
	for _, path := range []string{"/keys/rotate", "/ca/rotate", "/tokens?ttl=1h&uses=1"} {
		before := m.log.count()
		if got := ask(http.MethodPost, path); got != http.StatusConflict || m.log.count() != before {
			t.Errorf("%s while nothing can be written down: status %d, %d proposals", path, got, m.log.count()-before)
		}
	}
}
