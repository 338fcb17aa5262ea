package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/gateway"
	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/node/alloctest"
	atoll "github.com/atollregistry/atoll/proto"
)

func BenchmarkHot(b *testing.B)    { alloctest.Bench(b, hotFunctions) }
func TestAllocations(t *testing.T) { alloctest.Check(t, hotFunctions) }

// hotFunctions are whole requests, from the gateway to the state on disk. Of what a
// node does for them, the HTTP server and the read index are missing.
func hotFunctions(t testing.TB) []alloctest.Function {
	store := soloStore(t)
	pushImage(t, store)
	open := gateway.New(gateway.Config{Logger: zerolog.Nop()}, store, nil)
	closed := gateway.New(gateway.Config{Logger: zerolog.Nop(), Auth: &gateway.AuthConfig{Accounts: store}}, store, nil)
	token := hotToken(t, store, closed)
	head := func(handler http.Handler, authorization string) func() {
		r := httptest.NewRequest(http.MethodHead, "/v2/team/app/manifests/v1", nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		client := &discardingClient{header: http.Header{}}
		return func() {
			clear(client.header)
			handler.ServeHTTP(client, r)
			if client.status != http.StatusOK {
				t.Fatalf("status %d", client.status)
			}
		}
	}
	return []alloctest.Function{
		{Name: "HEAD of a manifest by tag", Allocs: 85, Call: head(open, "")},
		{Name: "HEAD of a manifest by tag, with a token", Allocs: 113, Call: head(closed, "Bearer "+token)},
	}
}

// soloStore is the state of a cluster of one node, without Raft, that has a key for tokens.
func soloStore(t testing.TB) *metadata.Store {
	changed := make(chan struct{}, 1)
	machine, err := metadata.OpenMachine(metadata.MachineConfig{Dir: t.TempDir(), Published: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = machine.Close() })
	store := metadata.NewStore(machine, &soloLog{machine: machine}, metadata.StoreConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }() // awaited below
	for len(store.TokenKeys()) == 0 {
		<-changed
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return store
}

// soloLog applies at once what is proposed.
type soloLog struct {
	mu      sync.Mutex
	machine *metadata.Machine
	last    uint64
}

func (l *soloLog) Propose(_ context.Context, command []byte) ([]byte, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	results, err := l.machine.Apply([]consensus.Entry{{Index: l.last, Term: 1, Data: command}})
	if err != nil {
		return nil, 0, err
	}
	return results[0], l.last, nil
}

func (l *soloLog) ReadIndex(context.Context) error { return nil }

// pushImage puts team/app:v1 there, of ten layers whose bytes nobody asks for.
func pushImage(t testing.TB, store *metadata.Store) {
	const content = "{}"
	manifest := &atoll.Manifest{
		Digest: "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", MediaType: "application/vnd.oci.image.manifest.v1+json",
		Size: uint64(len(content)), Content: []byte(content),
	}
	for i := range 10 {
		manifest.OptionalBlobs = append(manifest.OptionalBlobs, &atoll.Descriptor{
			MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: fmt.Sprintf("sha256:%064d", i), Size: 1 << 20,
		})
	}
	put := &atoll.PutManifest{Repository: "team/app", Manifest: manifest, Tags: []string{"v1"}}
	if err := store.PutManifest(t.Context(), put); err != nil {
		t.Fatal(err)
	}
}

// hotToken makes a robot and logs it in.
func hotToken(t testing.TB, store *metadata.Store, handler http.Handler) string {
	secret, record := metadata.NewRobotSecret(time.Now(), 0)
	account := &atoll.Account{Name: "ci", Kind: atoll.AccountKind_ACCOUNT_KIND_ROBOT, Groups: []string{"admins"}, Secrets: []*atoll.AccountSecret{record}}
	if err := store.PutAccount(t.Context(), account, nil); err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/token?service=atoll&scope=repository:team/app:pull", nil)
	r.SetBasicAuth("ci", secret)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	var reply struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &reply); err != nil || reply.Token == "" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return reply.Token
}

// discardingClient takes a reply and keeps its status.
type discardingClient struct {
	header http.Header
	status int
}

func (c *discardingClient) Header() http.Header         { return c.header }
func (c *discardingClient) WriteHeader(status int)      { c.status = status }
func (c *discardingClient) Write(p []byte) (int, error) { return len(p), nil }
