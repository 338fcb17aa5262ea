package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

const (
	// imageLayers is how many layers a small image has, besides its config.
	imageLayers = 3
	// layerBytes is the size of each.
	layerBytes = 16 << 10
	// configBytes is the size of its config.
	configBytes = 2 << 10

	manifestType = "application/vnd.oci.image.manifest.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
	// configType is that of a config that registries don't look into: it is random bytes.
	configType = "application/vnd.atoll.bench.config"
)

// descriptor is one of the OCI image specification.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// manifestOf is the manifest of an image whose first part is its config.
func manifestOf(parts []blob) ([]byte, error) {
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: manifestType, Config: descriptor{configType, parts[0].digest, parts[0].bytes}}
	for _, b := range parts[1:] {
		manifest.Layers = append(manifest.Layers, descriptor{layerType, b.digest, b.bytes})
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return encoded, nil
}

// manifestCall puts a manifest under a tag.
func manifestCall(base, tag string, manifest []byte) call {
	return call{
		method: http.MethodPut, url: base + "/manifests/" + tag, body: bytes.NewReader(manifest), length: int64(len(manifest)),
		header: []string{"Content-Type", manifestType}, want: []int{http.StatusCreated},
	}
}

// pushImages pushes a whole image in each operation: for each blob HEAD, POST, PATCH and
// PUT, one after the other, and the manifest to a tag of its own.
func pushImages(t *target) work {
	var layers, configs *family
	return work{
		prepare: func(context.Context) (err error) {
			if layers, err = t.content.family(layerBytes); err != nil {
				return err
			}
			configs, err = t.content.family(configBytes)
			return err
		},
		operation: func(ctx context.Context, n uint64) (moved int64, err error) {
			parts := make([]blob, 1+imageLayers)
			for i := range parts {
				f := layers
				if i == 0 {
					f = configs
				}
				if parts[i], err = t.newBlob(f); err != nil {
					return 0, err
				}
				if err := t.pushUnknown(ctx, t.base(n), &parts[i]); err != nil {
					return 0, err
				}
				moved += f.bytes
			}
			manifest, err := manifestOf(parts)
			if err != nil {
				return 0, err
			}
			return moved, t.putManifest(ctx, t.base(n), "i"+strconv.FormatUint(n, 10), manifest)
		},
	}
}

// pushUnknown asks whether a blob is there, which it is not, and pushes it.
func (t *target) pushUnknown(ctx context.Context, base string, b *blob) error {
	_, _, err := t.client.exchange(ctx, call{method: http.MethodHead, url: base + "/blobs/" + b.digest, want: []int{http.StatusNotFound}})
	if err != nil {
		return err
	}
	return t.push(ctx, base, b, func(ctx context.Context, u *upload, b *blob) error {
		if err := u.stream(ctx, b); err != nil {
			return err
		}
		return u.finish(ctx, b.digest, nil)
	})
}
