package workload

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"

	"github.com/atollregistry/atoll/jepsen/registry"
)

// content is bytes that can be made again: they depend on the seed and the name only, so
// that a shorter content is the beginning of a longer one, and none need be remembered.
type content struct {
	Name   string
	Size   int // bytes
	Digest string
}

// newContent makes the bytes once, for their digest.
func newContent(seed uint64, name string, size int) content {
	return content{Name: name, Size: size, Digest: registry.Digest(generate(seed, name, size))}
}

// bytes makes the bytes again.
func (c content) bytes(seed uint64) []byte { return generate(seed, c.Name, c.Size) }

// describe returns the descriptor under which a manifest names the content.
func (c content) describe(mediaType string) registry.Descriptor {
	return registry.Descriptor{MediaType: mediaType, Digest: c.Digest, Size: c.Size}
}

func generate(seed uint64, name string, size int) []byte {
	made := make([]byte, size)
	_, _ = rand.NewChaCha8(seedOf(seed, name)).Read(made) // never fails
	return made
}

// randOf returns random numbers that depend on the seed and the name only.
func randOf(seed uint64, name string) *rand.Rand {
	return rand.New(rand.NewChaCha8(seedOf(seed, name)))
}

func seedOf(seed uint64, name string) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%d/%s", seed, name))
}

// image is an image as clients know it after the push: enough to make all its bytes again.
type image struct {
	Name       string
	Repository string
	Config     content
	Layers     []content
	// Digest is the manifest's.
	Digest string
}

// newImage completes an image by the digest of its manifest.
func newImage(name, repository string, config content, layers []content) image {
	i := image{Name: name, Repository: repository, Config: config, Layers: layers}
	i.Digest = registry.Digest(i.manifest())
	return i
}

// manifest makes the manifest's bytes.
func (i image) manifest() []byte {
	layers := make([]registry.Descriptor, len(i.Layers))
	for n, layer := range i.Layers {
		layers[n] = layer.describe(registry.LayerType)
	}
	return registry.Manifest(i.Config.describe(registry.ConfigType), layers, i.Name)
}

// blobs returns the config and the layers.
func (i image) blobs() []content { return append([]content{i.Config}, i.Layers...) }

// size returns how many bytes the image's blobs have.
func (i image) size() (bytes int) {
	for _, blob := range i.blobs() {
		bytes += blob.Size
	}
	return bytes
}
