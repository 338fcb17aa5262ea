package nodetest

import (
	"net/http"
	"testing"

	"github.com/atollregistry/atoll/node"
)

// TestKeysAreRotated: what was logged in ends on every node when the command returns, and
// everybody can log in again.
func TestKeysAreRotated(t *testing.T) {
	c := loggedIn(t, 3)
	c.addUser("ann", "password of ann")
	old := c.Members[0].token("ann", "registry:catalog:*")
	status := func(m *Member, header http.Header) int {
		t.Helper()
		response, _, err := m.Do(http.MethodGet, "/v2/", nil, header)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode
	}
	for _, m := range c.Members {
		if got := status(m, old); got != http.StatusOK {
			t.Fatalf("%s: the token does not count: %d", m.Config.Name, got)
		}
	}
	rotated, err := node.RotateKeys(t.Context(), c.Members[1].Config.Home())
	if err != nil || rotated.TokenKey < 2 {
		t.Fatalf("%+v, %v", rotated, err)
	}
	for _, m := range c.Members {
		if got := status(m, old); got != http.StatusUnauthorized {
			t.Errorf("%s: the old token: %d", m.Config.Name, got)
		}
		if got := status(m, m.token("ann", "")); got != http.StatusOK {
			t.Errorf("%s: a new token: %d", m.Config.Name, got)
		}
	}
}
