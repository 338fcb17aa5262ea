package nodetest

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/gateway"
)

// BenchmarkHeadManifest asks for a manifest by tag again and again, at a node that is
// not the leader, through a gateway without login, and through one with it by token and
// by password. It reports what login costs as a factor of the time, the median over
// rounds that alternate:
//
//	go test ./node/nodetest -run '^$' -bench HeadManifest -benchtime 30x
func BenchmarkHeadManifest(b *testing.B) {
	c := loggedIn(b, 3)
	if _, err := c.PushImage("team/app", "v1", nil, c.Members...); err != nil {
		b.Fatal(err)
	}
	store := c.follower().running().Metadata()
	serve := func(auth *gateway.AuthConfig) string {
		server := httptest.NewServer(gateway.New(gateway.Config{Logger: zerolog.Nop(), Auth: auth}, store, nil))
		b.Cleanup(server.Close)
		return server.URL
	}
	open, closed := serve(nil), serve(&gateway.AuthConfig{Accounts: store})
	modes := []headMode{
		{"open", open, nil},
		{"token", closed, c.Members[0].token("root", "repository:team/app:pull")},
		{"basic", closed, http.Header{"Authorization": {basicAuth("root", "password of root")}}},
	}
	b.Run("alone", func(b *testing.B) { benchHeadManifest(b, modes, 1) })
	b.Run("16 at once", func(b *testing.B) { benchHeadManifest(b, modes, 16) })
}

// headMode is one way to ask.
type headMode struct {
	name, url string
	header    http.Header
}

func benchHeadManifest(b *testing.B, modes []headMode, clients int) {
	took := make([][]float64, len(modes))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	for round := range b.N + 1 {
		for i, mode := range modes {
			begun := time.Now()
			headManifests(b, client, mode.url, mode.header, clients)
			if round > 0 { // The first one opens the connections.
				took[i] = append(took[i], time.Since(begun).Seconds())
			}
		}
	}
	for i, mode := range modes {
		slices.Sort(took[i])
		b.ReportMetric(took[i][len(took[i])/2]*1e6/headsPerRound, "us-"+mode.name)
		b.ReportMetric(took[i][len(took[i])/2]/took[0][len(took[0])/2], "x-"+mode.name)
	}
}

const headsPerRound = 160

// headManifests asks headsPerRound times, with so many clients at once.
func headManifests(b *testing.B, client *http.Client, url string, header http.Header, clients int) {
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for range headsPerRound / clients {
				r, err := http.NewRequest(http.MethodHead, url+"/v2/team/app/manifests/v1", nil)
				if err != nil {
					b.Error(err)
					return
				}
				r.Header = header.Clone()
				response, err := client.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				_ = response.Body.Close()
				if response.StatusCode != http.StatusOK {
					b.Errorf("status %d", response.StatusCode)
					return
				}
			}
		})
	}
	running.Wait()
}

// follower returns a node that does not lead.
func (c *Cluster) follower() *Member {
	leader := c.Leader()
	i := slices.IndexFunc(c.Members, func(m *Member) bool { return m != leader })
	return c.Members[i]
}
