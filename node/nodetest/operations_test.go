package nodetest

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestMetricsNameNobody: whoever can read the metrics does not learn from them which
// repositories there are, or who asks for what.
func TestMetricsNameNobody(t *testing.T) {
	t.Parallel()
	c := Start(t, 1)
	m := c.Members[0]
	digest, err := c.PushImage("secret-project", "secret-tag", [][]byte{[]byte("layer")}, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v2/secret-project/manifests/secret-tag", "/v2/secret-other/manifests/x", "/secret-path"} {
		if _, _, err := m.Do("SECRETMETHOD", path, nil, http.Header{"User-Agent": {"secret-agent"}}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Do("GET", path, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	response, err := http.Get("http://" + m.Config.Operations.Listen + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ToLower(string(content))
	if !strings.Contains(text, "atoll_gateway_requests_total") {
		t.Fatal("there are no metrics of requests: the test shows nothing")
	}
	for _, name := range []string{"secret", strings.TrimPrefix(digest, "sha256:"), "127.0.0.1"} {
		if strings.Contains(text, name) {
			t.Errorf("the metrics tell of %q", name)
		}
	}
}
