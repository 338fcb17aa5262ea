package node

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A question that was not understood drops nothing: here there is no store to ask.
func TestCollectRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for _, query := range []string{"?dry-run=yes", "?dry-run=2", "?dry-run=tru"} {
		answer := httptest.NewRecorder()
		(&admin{}).serveCollect(answer, httptest.NewRequest(http.MethodPost, "/collect"+query, nil))
		if answer.Code != http.StatusBadRequest {
			t.Errorf("%s was answered %d", query, answer.Code)
		}
	}
}
