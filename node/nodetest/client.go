package nodetest

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// requestTimeout bounds one request of the client. It is longer than any wait
// that a node hides from its clients.
const requestTimeout = 60 * time.Second

// OCI media types of the images that the client makes.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// Acked is content whose push was acknowledged and which must be readable from
// then on.
type Acked struct {
	Repository, Digest string
	// Manifest tells a manifest from a blob.
	Manifest bool
	// Tag names the manifest, if not empty.
	Tag  string
	Size int
}

// Digest is the SHA-256 digest of content.
func Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Bytes makes n bytes from a seed.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	content := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(content) // never fails
	return content
}

// Do sends one request to a member and returns the answer with its body read.
func (m *Member) Do(method, path string, body io.Reader, header http.Header) (*http.Response, []byte, error) {
	target := path
	if !strings.HasPrefix(path, "http") {
		target = m.URL() + path
	}
	request, err := http.NewRequest(method, target, body)
	if err != nil {
		return nil, nil, err
	}
	if m.User != nil {
		password, _ := m.User.Password()
		request.SetBasicAuth(m.User.Username(), password)
	}
	for key, values := range header {
		request.Header[key] = values
	}
	client := http.Client{Timeout: requestTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // Tests of TLS look at more than this.
	}}
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	content, err := readBody(response)
	return response, content, err
}

// readBody reads a body into memory of its size: the race detector would follow it through each time that it grows.
func readBody(response *http.Response) ([]byte, error) {
	if response.Request.Method == http.MethodHead || response.ContentLength < 0 {
		return io.ReadAll(response.Body)
	}
	content := make([]byte, response.ContentLength)
	n, err := io.ReadFull(response.Body, content)
	return content[:n], err
}

// expect sends a request and fails unless the answer has the status.
func (m *Member) expect(status int, method, path string, body io.Reader) (*http.Response, []byte, error) {
	response, content, err := m.Do(method, path, body, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s on %s: %w", method, path, m.Config.Name, err)
	}
	if response.StatusCode != status {
		return nil, nil, fmt.Errorf("%s %s on %s: %s: %s", method, path, m.Config.Name, response.Status, content)
	}
	return response, content, nil
}

// PushBlob pushes a blob with each step on the next of the given members, and
// remembers it once it is acknowledged.
func (c *Cluster) PushBlob(repository string, content []byte, on ...*Member) (string, error) {
	at := func(step int) *Member { return on[step%len(on)] }
	response, _, err := at(0).expect(http.StatusAccepted, "POST", "/v2/"+repository+"/blobs/uploads/", nil)
	if err != nil {
		return "", err
	}
	response, _, err = at(1).expect(http.StatusAccepted, "PATCH", response.Header.Get("Location"), bytes.NewReader(content))
	if err != nil {
		return "", err
	}
	digest := Digest(content)
	location, err := url.Parse(response.Header.Get("Location"))
	if err != nil {
		return "", err
	}
	query := location.Query()
	query.Set("digest", digest)
	location.RawQuery = query.Encode()
	if _, _, err = at(2).expect(http.StatusCreated, "PUT", location.String(), nil); err != nil {
		return "", err
	}
	c.remember(Acked{Repository: repository, Digest: digest, Size: len(content)})
	// As the docker engine does, at once; it gives up the push when told 404.
	if _, _, err = at(3).expect(http.StatusOK, "HEAD", "/v2/"+repository+"/blobs/"+digest, nil); err != nil {
		return "", err
	}
	return digest, nil
}

// PushImage pushes an image of the given layers and a tag for it, every request
// on the next of the given members.
func (c *Cluster) PushImage(repository, tag string, layers [][]byte, on ...*Member) (string, error) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: manifestType}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{"Labels":{"tag":%q}}}`, tag)
	digest, err := c.PushBlob(repository, config, on...)
	if err != nil {
		return "", err
	}
	manifest.Config = descriptor{configType, digest, len(config)}
	for _, layer := range layers {
		if digest, err = c.PushBlob(repository, layer, on...); err != nil {
			return "", err
		}
		manifest.Layers = append(manifest.Layers, descriptor{layerType, digest, len(layer)})
	}
	content, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	header := http.Header{"Content-Type": {manifestType}}
	response, answer, err := on[len(on)-1].Do("PUT", "/v2/"+repository+"/manifests/"+tag, bytes.NewReader(content), header)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("put manifest %s:%s: %s: %s", repository, tag, response.Status, answer)
	}
	c.remember(Acked{Repository: repository, Digest: Digest(content), Manifest: true, Tag: tag, Size: len(content)})
	return Digest(content), nil
}

func (c *Cluster) remember(acked Acked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = append(c.acked, acked)
}

// Acked lists what was acknowledged so far.
func (c *Cluster) Acked() []Acked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Acked(nil), c.acked...)
}

// Forget drops acknowledged content that the test has deleted.
func (c *Cluster) Forget(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.acked[:0]
	for _, acked := range c.acked {
		if acked.Digest != digest {
			kept = append(kept, acked)
		}
	}
	c.acked = kept
}

// Read fetches acknowledged content from a member and checks every byte of it.
func (m *Member) Read(acked Acked) error {
	path := "/v2/" + acked.Repository + "/blobs/" + acked.Digest
	if acked.Manifest {
		path = "/v2/" + acked.Repository + "/manifests/" + acked.Digest
	}
	_, content, err := m.expect(http.StatusOK, "GET", path, nil)
	if err != nil {
		return err
	}
	if got := Digest(content); got != acked.Digest {
		return fmt.Errorf("GET %s on %s: wrong bytes were served: they have digest %s", path, m.Config.Name, got)
	}
	if acked.Tag == "" {
		return nil
	}
	response, _, err := m.expect(http.StatusOK, "HEAD", "/v2/"+acked.Repository+"/manifests/"+acked.Tag, nil)
	if err != nil {
		return err
	}
	if got := response.Header.Get("Docker-Content-Digest"); got != acked.Digest {
		return fmt.Errorf("tag %s:%s on %s names %s, not %s", acked.Repository, acked.Tag, m.Config.Name, got, acked.Digest)
	}
	return nil
}

func getOK(target string) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(target)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status + ": " + strings.TrimSpace(string(body)))
	}
	return nil
}
