package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	digestC = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

func descriptorJSON(mediaType, digest string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":7}`, mediaType, digest)
}

// imageJSON is an image manifest with more top-level fields.
func imageJSON(fields string) string {
	return `{"schemaVersion":2,"config":` + descriptorJSON("application/vnd.oci.image.config.v1+json", digestA) + fields + `}`
}

func indexJSON(fields string) string { return `{"schemaVersion":2,"manifests":[]` + fields + `}` }

func digestsOf(descriptors []*proto.Descriptor) (digests []string) {
	for _, d := range descriptors {
		digests = append(digests, d.Digest)
	}
	return digests
}

func TestParseManifestLinks(t *testing.T) {
	layer := func(mediaType, digest string) string { return descriptorJSON(mediaType, digest) }
	const tarType = "application/vnd.oci.image.layer.v1.tar"
	for _, test := range []struct {
		name, contentType, content string
		blobs, manifests           []string
		subject, artifactType      string
	}{
		{name: "image", contentType: ociManifestType, content: imageJSON(`,"layers":[` + layer(tarType, digestB) + `,` + layer(tarType, digestC) + `]`),
			blobs: []string{digestA, digestB, digestC}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "docker image", contentType: dockerManifestType, content: imageJSON(`,"layers":[` + layer(tarType, digestB) + `]`),
			blobs: []string{digestA, digestB}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "same blob twice", contentType: ociManifestType, content: imageJSON(`,"layers":[` + layer(tarType, digestA) + `,` + layer(tarType, digestB) + `,` + layer(tarType, digestB) + `]`),
			blobs: []string{digestA, digestB}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "no layers", contentType: ociManifestType, content: imageJSON(""), blobs: []string{digestA}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "null layers", contentType: ociManifestType, content: imageJSON(`,"layers":null,"subject":null,"annotations":null,"artifactType":null`), blobs: []string{digestA}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "layers elsewhere", contentType: ociManifestType, content: imageJSON(`,"layers":[` +
			layer("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", digestB) + `,` +
			`{"mediaType":"x/y","digest":"` + digestC + `","size":1,"urls":["https://example.com"]}]`),
			blobs: []string{digestA}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "no urls after all", contentType: ociManifestType, content: imageJSON(`,"layers":[{"mediaType":"x/y","digest":"` + digestC + `","size":1,"urls":[]}]`),
			blobs: []string{digestA, digestC}, artifactType: "application/vnd.oci.image.config.v1+json"},
		{name: "artifact", contentType: ociManifestType, content: imageJSON(`,"artifactType":"application/vnd.example","layers":[],"subject":` + layer(ociManifestType, digestB)),
			blobs: []string{digestA}, artifactType: "application/vnd.example", subject: digestB},
		{name: "index", contentType: ociIndexType, content: `{"schemaVersion":2,"manifests":[` + layer(ociManifestType, digestA) + `,` + layer(dockerListType, digestB) + `],"subject":` + layer(ociManifestType, digestC) + `}`,
			manifests: []string{digestA, digestB}, subject: digestC},
		{name: "docker list", contentType: dockerListType, content: `{"schemaVersion":2,"manifests":[` + layer(dockerManifestType, digestA) + `]}`, manifests: []string{digestA}},
		{name: "BuildKit cache", contentType: ociIndexType, content: `{"schemaVersion":2,"manifests":[` + layer(tarType, digestA) + `,` + layer("application/vnd.buildkit.cacheconfig.v0", digestB) + `]}`,
			blobs: []string{digestA, digestB}},
		{name: "empty index", contentType: ociIndexType, content: indexJSON("")},
		{name: "type from the manifest", content: indexJSON(`,"mediaType":"` + ociIndexType + `"`)},
		{name: "unknown fields", contentType: ociIndexType, content: indexJSON(`,"x":{"config":1,"manifests":{"a":[[1]]},"A":1,"a":2}`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := parseManifest([]byte(test.content), test.contentType)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(digestsOf(m.Blobs), test.blobs) || !slices.Equal(digestsOf(m.Manifests), test.manifests) {
				t.Errorf("blobs %v, manifests %v", digestsOf(m.Blobs), digestsOf(m.Manifests))
			}
			if m.Subject != test.subject || m.ArtifactType != test.artifactType || m.Size != uint64(len(test.content)) {
				t.Errorf("subject %q, artifact type %q, size %d", m.Subject, m.ArtifactType, m.Size)
			}
		})
	}
}

func TestParseManifestRefuses(t *testing.T) {
	deep := strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)
	for _, test := range []struct{ name, contentType, content, problem string }{
		{"nothing", ociManifestType, "", "not valid JSON"},
		{"two values", ociManifestType, imageJSON("") + "{}", "not valid JSON"},
		{"not an object", ociManifestType, "[]", "not an object"},
		{"null", ociManifestType, "null", "not an object"},
		{"broken UTF-8", ociManifestType, imageJSON(",\"x\":\"\xff\""), "not valid UTF-8"},
		{"byte order mark", ociManifestType, "\ufeff" + imageJSON(""), "not valid JSON"},
		{"trailing comma", ociManifestType, imageJSON(","), "not valid JSON"},
		{"field twice", ociManifestType, imageJSON(`,"config":null`), `two fields "config"`},
		{"field twice, escaped", ociManifestType, imageJSON(`,"\u0063onfig":null`), `two fields "config"`},
		{"unknown field twice", ociManifestType, imageJSON(`,"x":1,"x":1`), `two fields "x"`},
		{"field twice inside", ociManifestType, imageJSON(`,"x":[{"a":1,"a":2}]`), `x.0: two fields "a"`},
		{"annotation twice", ociManifestType, imageJSON(`,"annotations":{"a":"1","a":"2"}`), `annotations: two fields "a"`},
		{"digest twice", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `","digest":"` + digestB + `","size":1}]`), "layers.0: two fields"},
		{"another case", ociManifestType, imageJSON(`,"Layers":[]`), `field "Layers" must be written "layers"`},
		{"another case below", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","Digest":"` + digestA + `","size":1}]`), `layers.0: field "Digest"`},
		{"Kelvin sign", ociManifestType, imageJSON(`,"ſubject":{}`), `must be written "subject"`},
		{"too deep", ociManifestType, imageJSON(`,"x":` + deep), "nested deeper"},
		{"image and index", ociManifestType, imageJSON(`,"manifests":[]`), `has no "manifests"`},
		{"image and null index", ociManifestType, imageJSON(`,"manifests":null`), `has no "manifests"`},
		{"image and schema 1", dockerManifestType, imageJSON(`,"fsLayers":[]`), `has no "fsLayers"`},
		{"index and image", ociIndexType, indexJSON(`,"layers":[]`), `has no "layers"`},
		{"index and config", ociIndexType, indexJSON(`,"config":null`), `has no "config"`},
		{"index as image", ociManifestType, indexJSON(""), `has no "manifests"`},
		{"image as index", dockerListType, imageJSON(""), `has no "config"`},
		{"no config", ociManifestType, `{"schemaVersion":2,"layers":[]}`, `"config" is missing`},
		{"null config", ociManifestType, `{"schemaVersion":2,"config":null}`, `"config" is missing`},
		{"no manifests", ociIndexType, `{"schemaVersion":2}`, `"manifests" is missing`},
		{"no version", ociIndexType, `{"manifests":[]}`, "schemaVersion is not 2"},
		{"version 1", ociIndexType, `{"schemaVersion":1,"manifests":[]}`, "schemaVersion is not 2"},
		{"version as text", ociIndexType, `{"schemaVersion":"2","manifests":[]}`, "schemaVersion: not a number"},
		{"version as float", ociIndexType, `{"schemaVersion":2.0,"manifests":[]}`, "schemaVersion: not an integer"},
		{"types differ", ociManifestType, imageJSON(`,"mediaType":"` + dockerManifestType + `"`), "but Content-Type is"},
		{"type not text", ociManifestType, imageJSON(`,"mediaType":1`), "mediaType: not a string"},
		{"no type", "", imageJSON(""), "says what this is"},
		{"bad Content-Type", "a/b/c", imageJSON(""), "is not a media type"},
		{"schema 1", "application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1}`, "are not supported"},
		{"artifact manifest", "application/vnd.oci.artifact.manifest.v1+json", `{"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}`, "are not supported"},
		{"any JSON", "application/json", imageJSON(""), "are not supported"},
		{"config not a descriptor", ociManifestType, `{"schemaVersion":2,"config":"x"}`, "config: not an object"},
		{"layers not an array", ociManifestType, imageJSON(`,"layers":{}`), "layers: not an array"},
		{"layer not an object", ociManifestType, imageJSON(`,"layers":[null]`), "layers.0: not an object"},
		{"no digest", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","size":1}]`), "layers.0: digest is not"},
		{"bad digest", ociManifestType, imageJSON(`,"subject":{"mediaType":"a","digest":"sha256:../..","size":1}`), "subject: digest is not"},
		{"no media type", ociManifestType, imageJSON(`,"layers":[{"digest":"` + digestA + `","size":1}]`), "layers.0: mediaType is missing"},
		{"no size", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `"}]`), "layers.0: size is missing"},
		{"negative size", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `","size":-1}]`), "layers.0: size is missing or negative"},
		{"huge size", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `","size":9223372036854775808}]`), "size: not an integer"},
		{"fractional size", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `","size":1e3}]`), "size: not an integer"},
		{"urls not an array", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `","size":1,"urls":"x"}]`), "urls: not an array"},
		{"url not text", ociManifestType, imageJSON(`,"layers":[{"mediaType":"a","digest":"` + digestA + `","size":1,"urls":[1]}]`), "urls.0: not a string"},
		{"annotations not an object", ociManifestType, imageJSON(`,"annotations":[]`), "annotations: not an object"},
		{"annotation not text", ociManifestType, imageJSON(`,"annotations":{"a":1}`), `annotations: "a" is not a string`},
		{"long media type", ociManifestType, imageJSON(`,"artifactType":"` + strings.Repeat("a", 256) + `"`), "artifactType: longer than"},
		{"many layers", ociManifestType, imageJSON(`,"layers":[` + strings.Repeat(descriptorJSON("a", digestB)+",", maxReferences) + descriptorJSON("a", digestB) + `]`), "more than 4096"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseManifest([]byte(test.content), test.contentType)
			if !errors.Is(err, errManifestInvalid) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), test.problem) {
				t.Errorf("got %q, want %q in it", err, test.problem)
			}
		})
	}
}

func TestAnnotationsStayOutOfTheLog(t *testing.T) {
	plain, err := parseManifest([]byte(imageJSON(`,"annotations":{"a":"b"}`)), ociManifestType)
	if err != nil || plain.Annotations != nil {
		t.Errorf("without a subject: %v, %v", plain, err)
	}
	referrer, err := parseManifest([]byte(imageJSON(`,"annotations":{"a":"b"},"subject":`+descriptorJSON("x", digestB))), ociManifestType)
	if err != nil || referrer.Annotations["a"] != "b" {
		t.Errorf("with a subject: %v, %v", referrer, err)
	}
}

// looseManifest is how a Go client reads a manifest.
type looseManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *looseDescriptor  `json:"config"`
	Layers        []looseDescriptor `json:"layers"`
	Manifests     []looseDescriptor `json:"manifests"`
	Subject       *looseDescriptor  `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

type looseDescriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls"`
}

func (d looseDescriptor) parsed() parsedDescriptor {
	return parsedDescriptor{mediaType: d.MediaType, digest: d.Digest, size: d.Size, external: len(d.URLs) > 0}
}

// FuzzDecodeManifest: what is accepted means the same to encoding/json, which
// takes the last of equal fields and does not mind case.
func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(imageJSON(`,"layers":[` + descriptorJSON("a", digestB) + `],"annotations":{"a":"b"},"subject":null`)))
	f.Add([]byte(indexJSON(`,"mediaType":"` + ociIndexType + `","manifests ":[[]]`)))
	f.Add([]byte(imageJSON(`,"Layers":[],"layers":[]`)))
	f.Add([]byte(`{"schemaVersion":2,"config":{},"config":{}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		parsed, err := decodeManifest(content)
		if err != nil {
			return
		}
		var loose looseManifest
		if err := json.Unmarshal(content, &loose); err != nil {
			t.Fatalf("accepted what encoding/json refuses: %v", err)
		}
		if parsed.schemaVersion != int64(loose.SchemaVersion) || parsed.mediaType != loose.MediaType || parsed.artifactType != loose.ArtifactType {
			t.Errorf("got %+v, encoding/json %+v", parsed, loose)
		}
		same := func(what string, mine []parsedDescriptor, theirs []looseDescriptor) {
			equal := func(a parsedDescriptor, b looseDescriptor) bool { return a == b.parsed() }
			if !slices.EqualFunc(mine, theirs, equal) {
				t.Errorf("%s: got %v, encoding/json %v", what, mine, theirs)
			}
		}
		same("layers", parsed.layers, loose.Layers)
		same("manifests", parsed.manifests, loose.Manifests)
		one := func(what string, mine *parsedDescriptor, theirs *looseDescriptor) {
			if (mine == nil) != (theirs == nil) || (mine != nil && *mine != theirs.parsed()) {
				t.Errorf("%s: got %v, encoding/json %v", what, mine, theirs)
			}
		}
		one("config", parsed.config, loose.Config)
		one("subject", parsed.subject, loose.Subject)
		if len(parsed.annotations) != len(loose.Annotations) {
			t.Errorf("%d annotations, encoding/json %d", len(parsed.annotations), len(loose.Annotations))
		}
		for _, contentType := range []string{"", ociManifestType, ociIndexType, dockerManifestType, dockerListType} {
			_, _ = parseManifest(content, contentType)
		}
	})
}
