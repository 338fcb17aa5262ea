// Package registry is a client of the OCI distribution protocol that hides nothing: no
// retries, no redirects, no guesses. It says of every request whether it was done.
package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// requestTimeout is longer than a node holds a request while there is no leader (10 s).
	requestTimeout = 20 * time.Second
	// maxReply bounds what is read of one reply.
	maxReply = 64 << 20

	// ManifestType is the media type of the manifests that the workloads push.
	ManifestType = "application/vnd.oci.image.manifest.v1+json"
	// ConfigType is that of their configs.
	ConfigType = "application/vnd.oci.image.config.v1+json"
	// LayerType is that of their layers.
	LayerType = "application/vnd.oci.image.layer.v1.tar"
)

// Digest returns the digest of some bytes in its usual form.
func Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Descriptor is a descriptor of the OCI image specification.
type Descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// Describe returns the descriptor of some bytes.
func Describe(mediaType string, content []byte) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: Digest(content), Size: len(content)}
}

// Manifest returns an image manifest. Manifests with different notes have different digests.
func Manifest(config Descriptor, layers []Descriptor, note string) []byte {
	if layers == nil {
		layers = []Descriptor{}
	}
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": ManifestType, "config": config, "layers": layers,
		"annotations": map[string]string{"note": note},
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		panic(err) // strings and numbers can be encoded
	}
	return encoded
}

// Client asks nodes.
type Client struct {
	HTTP *http.Client
}

// New returns a client whose connections are made by dial.
func New(dial func(ctx context.Context, network, address string) (net.Conn, error)) *Client {
	transport := &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 64, IdleConnTimeout: 5 * time.Second, DisableCompression: true}
	return &Client{HTTP: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Reply is what a node answered.
type Reply struct {
	Status int
	Header http.Header
	Body   []byte
}

// ErrCutOff is that a reply has begun and did not come to its end. Its Reply has what came.
var ErrCutOff = errors.New("reply was cut off")

// Do sends one request, with a body unless it is nil, and reads the whole reply. Header
// are pairs of names and values. It fails when there is no whole reply.
func (c *Client) Do(ctx context.Context, method, url string, body []byte, header ...string) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	// A reader of a type that net/http does not know: it could send a body that it knows
	// again on another connection, behind the back of the history.
	var reader io.Reader
	if body != nil {
		reader = io.MultiReader(bytes.NewReader(body))
	}
	req, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(body))
	if body != nil && len(body) == 0 {
		req.Body = http.NoBody
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var content bytes.Buffer
	if method != http.MethodHead { // room for all of it at once
		content.Grow(int(min(max(resp.ContentLength, 0), maxReply)) + bytes.MinRead)
	}
	_, err = content.ReadFrom(io.LimitReader(resp.Body, maxReply))
	reply := &Reply{Status: resp.StatusCode, Header: resp.Header, Body: content.Bytes()}
	if err != nil {
		return reply, fmt.Errorf("%w after %d bytes: %w", ErrCutOff, content.Len(), err)
	}
	return reply, nil
}

// NotSent says that an error of Do came before anything was sent: no connection could be made.
func NotSent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || errors.Is(err, syscall.ECONNREFUSED)
}

// OutcomeOfWrite says what is known after a write. What was refused for what it asked
// (4xx) was not done; a 408, a 5xx or no answer may mean anything.
func OutcomeOfWrite(reply *Reply, err error) history.Outcome {
	switch {
	case err != nil && NotSent(err):
		return history.Fail
	case err != nil:
		return history.Unknown
	case reply.Status >= 200 && reply.Status < 300:
		return history.OK
	case reply.Status == http.StatusRequestTimeout || reply.Status >= 500 || reply.Status < 200:
		return history.Unknown
	}
	return history.Fail
}
