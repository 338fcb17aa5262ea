package gateway

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func TestWarn(t *testing.T) {
	warn := func(texts ...string) []string {
		recorder := httptest.NewRecorder()
		x := &exchange{w: &response{ResponseWriter: recorder, control: http.NewResponseController(recorder)}}
		for _, text := range texts {
			x.warn(text)
		}
		return recorder.Header().Values("Warning")
	}
	long := strings.Repeat("x", maxWarningBytes-len(`299 - ""`))
	for _, test := range []struct{ texts, want []string }{
		{[]string{"something"}, []string{`299 - "something"`}},
		{[]string{"a", "b"}, []string{`299 - "a"`, `299 - "b"`}},
		{[]string{`say "\"`}, []string{`299 - "say \"\\\""`}},
		{[]string{"two\r\nlines"}, nil},
		{[]string{long}, []string{`299 - "` + long + `"`}},
		{[]string{long + "x"}, nil},
		{[]string{long, "a"}, []string{`299 - "` + long + `"`}},
	} {
		if got := warn(test.texts...); !slices.Equal(got, test.want) {
			t.Errorf("%.60q: got %.60q", test.texts, got)
		}
	}
}
