package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// differencesStep is one request of the script that both registries are asked.
type differencesStep struct {
	name   string
	method string
	// path may begin with uploadPlace, for the Location that was last answered.
	path string
	// digest is put into the query.
	digest string
	// header has lines, "Name: value".
	header []string
	body   []byte
	// chunked sends the body without its length.
	chunked bool
}

const uploadPlace = "UPLOAD"

// What the script pushes.
var (
	scriptLayer  = []byte("0123456789abcdef")
	scriptOther  = []byte("another layer")
	scriptConfig = []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	scriptEmpty  = []byte(`{}`)

	scriptImage  = imageManifest(ociImage, ociConfig, scriptConfig, ociLayer, scriptLayer, "")
	scriptDocker = imageManifest(dockerImageType, "application/vnd.docker.container.image.v1+json", scriptConfig,
		"application/vnd.docker.image.rootfs.diff.tar.gzip", scriptLayer, "")
	scriptLacking   = imageManifest(ociImage, ociConfig, scriptConfig, ociLayer, []byte("nowhere"), "")
	scriptArtifact  = imageManifest(ociImage, "application/vnd.example.thing", scriptEmpty, "text/plain", scriptOther, "")
	scriptSignature = imageManifest(ociImage, "application/vnd.example.signature", scriptEmpty, "text/plain", scriptOther,
		`,"subject":`+descriptorJSON(ociImage, scriptImage))
	scriptForeign = imageManifest(ociImage, ociConfig, scriptConfig, "application/vnd.oci.image.layer.nondistributable.v1.tar", []byte("elsewhere"), "")
	scriptIndex   = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, descriptorJSON(ociImage, scriptImage))
	scriptList    = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, dockerList,
		strings.TrimSuffix(descriptorJSON(dockerImageType, scriptDocker), "}")+`,"platform":{"architecture":"amd64","os":"linux"}}`)
	scriptSparse  = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, descriptorJSON(ociImage, []byte("nowhere")))
	scriptHollow  = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, ociIndex)
	scriptOld     = []byte(`{"schemaVersion":1,"name":"lib/app","tag":"old","architecture":"amd64","fsLayers":[],"history":[]}`)
	scriptUntyped = imageManifest("", ociConfig, scriptConfig, ociLayer, scriptLayer, "")
	scriptBoth    = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[],"manifests":[]}`, ociImage, descriptorJSON(ociConfig, scriptConfig))
)

const (
	ociImage        = "application/vnd.oci.image.manifest.v1+json"
	ociIndex        = "application/vnd.oci.image.index.v1+json"
	ociConfig       = "application/vnd.oci.image.config.v1+json"
	ociLayer        = "application/vnd.oci.image.layer.v1.tar"
	dockerImageType = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList      = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// contentNames has what the document calls the contents that the script pushes.
func contentNames() map[string][]byte {
	return map[string][]byte{
		"LAYER": scriptLayer, "OTHER": scriptOther, "CONFIG": scriptConfig, "EMPTY": scriptEmpty, "NOTHING": {},
		"IMAGE": scriptImage, "DOCKER": scriptDocker, "LACKING": scriptLacking, "ARTIFACT": scriptArtifact, "SIGNATURE": scriptSignature,
		"FOREIGN": scriptForeign, "INDEX": scriptIndex, "LIST": scriptList, "SPARSE": scriptSparse, "OLD": scriptOld, "UNTYPED": scriptUntyped,
		"BOTH": scriptBoth, "HOLLOW": scriptHollow,
	}
}

// nameDigests writes the digests of known contents as sha256:NAME.
func nameDigests(text string) string {
	if !strings.Contains(text, "sha256") {
		return text
	}
	for name, content := range contentNames() {
		text = strings.ReplaceAll(text, digestOf(content), "sha256:"+name)
	}
	return text
}

// shape says what a body is: known content, errors by their codes, other JSON as
// it is but for its spaces, or text.
func shape(response *http.Response, body []byte) string {
	if len(body) == 0 {
		return "empty"
	}
	for name, content := range contentNames() {
		if bytes.Equal(body, content) && name != "EMPTY" {
			return name
		}
	}
	var failure struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(body, &failure); err == nil && len(failure.Errors) > 0 {
		var codes []string
		for _, e := range failure.Errors {
			codes = append(codes, e.Code)
			if e.Message == "" {
				codes = append(codes, "no message")
			}
		}
		return "errors " + strings.Join(codes, " ")
	}
	var tags struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}
	if json.Unmarshal(body, &tags) == nil && tags.Tags != nil {
		slices.Sort(tags.Tags) // docker-registry has them in the file system's order
		body, _ = json.Marshal(tags)
	}
	var compact bytes.Buffer
	if json.Compact(&compact, body) == nil {
		return nameDigests(compact.String())
	}
	if _, boundary, ok := strings.Cut(response.Header.Get("Content-Type"), "multipart/byteranges; boundary="); ok {
		lines := strings.FieldsFunc(strings.ReplaceAll(string(body), boundary, "B"), func(r rune) bool { return r == '\r' || r == '\n' })
		for i := 0; i+1 < len(lines); i++ {
			if strings.HasPrefix(lines[i], "Content-Range") && strings.HasPrefix(lines[i+1], "Content-Type") {
				lines[i], lines[i+1] = lines[i+1], lines[i] // in either order
			}
		}
		return "parts " + strings.Join(lines, " ")
	}
	return fmt.Sprintf("%.60q", body)
}

func descriptorJSON(mediaType string, content []byte) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digestOf(content), len(content))
}

// imageManifest makes a manifest; one without a media type has no such field.
func imageManifest(mediaType, configType string, config []byte, layerType string, layer []byte, rest string) []byte {
	if mediaType != "" {
		mediaType = fmt.Sprintf(`"mediaType":%q,`, mediaType)
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,%s"config":%s,"layers":[%s]%s}`, mediaType, descriptorJSON(configType, config), descriptorJSON(layerType, layer), rest)
}

// differencesScript is the row of requests, in which each step builds on those before.
func differencesScript() []differencesStep {
	var all []differencesStep
	for _, part := range [][]differencesStep{
		scriptBase(), scriptPush(), scriptFaultyPush(), scriptMounts(), scriptBlobs(), scriptManifests(), scriptFaultyManifests(), scriptLists(), scriptDeletes(),
	} {
		all = append(all, part...)
	}
	return all
}

func scriptBase() []differencesStep {
	return []differencesStep{
		{name: "base", method: "GET", path: "/v2/"},
		{name: "base, HEAD", method: "HEAD", path: "/v2/"},
		{name: "base without its slash", method: "GET", path: "/v2"},
		{name: "base, POST", method: "POST", path: "/v2/"},
		{name: "root", method: "GET", path: "/"},
		{name: "unknown endpoint", method: "GET", path: "/v2/lib/app/nothing"},
		{name: "invalid name", method: "GET", path: "/v2/Lib/app/tags/list"},
		{name: "tags of an unknown repository", method: "GET", path: "/v2/lib/app/tags/list"},
		{name: "manifest of an unknown repository", method: "GET", path: "/v2/lib/app/manifests/latest"},
		{name: "blob of an unknown repository", method: "GET", path: "/v2/lib/app/blobs/" + digestOf(scriptLayer)},
		{name: "empty catalog", method: "GET", path: "/v2/_catalog"},
	}
}

func scriptPush() []differencesStep {
	uploads := "/v2/lib/app/blobs/uploads/"
	stream := "Content-Type: application/octet-stream"
	return []differencesStep{
		{name: "start", method: "POST", path: uploads},
		{name: "progress of nothing", method: "GET", path: uploadPlace},
		{name: "stream", method: "PATCH", path: uploadPlace, body: scriptLayer, chunked: true, header: []string{stream}},
		{name: "progress", method: "GET", path: uploadPlace},
		{name: "progress, HEAD", method: "HEAD", path: uploadPlace},
		{name: "finish", method: "PUT", path: uploadPlace, digest: digestOf(scriptLayer)},
		{name: "finish again", method: "PUT", path: uploadPlace, digest: digestOf(scriptLayer)},
		{name: "start without the slash", method: "POST", path: strings.TrimSuffix(uploads, "/")},
		{name: "start, for one PUT", method: "POST", path: uploads},
		{name: "one PUT", method: "PUT", path: uploadPlace, digest: digestOf(scriptConfig), body: scriptConfig, header: []string{stream}},
		{name: "start, for nothing", method: "POST", path: uploads},
		{name: "a PUT of nothing", method: "PUT", path: uploadPlace, digest: digestOf(nil), header: []string{stream}},
		{name: "start, for chunks", method: "POST", path: uploads},
		{name: "first chunk", method: "PATCH", path: uploadPlace, body: scriptOther[:4], header: []string{stream, "Content-Range: 0-3"}},
		{name: "progress of chunks", method: "GET", path: uploadPlace},
		{name: "second chunk", method: "PATCH", path: uploadPlace, body: scriptOther[4:8], header: []string{stream, "Content-Range: 4-7"}},
		{name: "finish with the last chunk", method: "PUT", path: uploadPlace, digest: digestOf(scriptOther), body: scriptOther[8:],
			header: []string{stream, "Content-Range: 8-12"}},
		{name: "one POST", method: "POST", path: uploads, digest: digestOf(scriptEmpty), body: scriptEmpty, header: []string{stream}},
		{name: "one PUT where that POST said", method: "PUT", path: uploadPlace, digest: digestOf(scriptEmpty), body: scriptEmpty, header: []string{stream}},
		{name: "one POST with another digest", method: "POST", path: uploads, digest: digestOf(scriptLayer), body: scriptOther, header: []string{stream}},
		{name: "start, to cancel", method: "POST", path: uploads},
		{name: "cancel", method: "DELETE", path: uploadPlace},
		{name: "cancel again", method: "DELETE", path: uploadPlace},
		{name: "stream to a cancelled upload", method: "PATCH", path: uploadPlace, body: scriptLayer, header: []string{stream}},
		{name: "progress of a cancelled upload", method: "GET", path: uploadPlace},
		{name: "finish a cancelled upload", method: "PUT", path: uploadPlace, digest: digestOf([]byte("never"))},
	}
}

func scriptFaultyPush() []differencesStep {
	uploads := "/v2/lib/app/blobs/uploads/"
	start := func(what string) differencesStep {
		return differencesStep{name: "start, for " + what, method: "POST", path: uploads}
	}
	return []differencesStep{
		start("a wrong digest"),
		{name: "finish with a wrong digest", method: "PUT", path: uploadPlace, digest: digestOf(scriptLayer), body: scriptOther},
		start("no digest"),
		{name: "finish without a digest", method: "PUT", path: uploadPlace, body: scriptLayer},
		start("a malformed digest"),
		{name: "finish with a malformed digest", method: "PUT", path: uploadPlace, digest: "sha256:short", body: scriptLayer},
		start("an unknown algorithm"),
		{name: "finish with an unknown algorithm", method: "PUT", path: uploadPlace, digest: "md5:d41d8cd98f00b204e9800998ecf8427e", body: scriptLayer},
		start("a gap"),
		{name: "chunk after a gap", method: "PATCH", path: uploadPlace, body: scriptOther[8:], header: []string{"Content-Range: 8-12"}},
		{name: "progress after a gap", method: "GET", path: uploadPlace},
		start("the same twice"),
		{name: "some bytes", method: "PATCH", path: uploadPlace, body: scriptOther[:4], header: []string{"Content-Range: 0-3"}},
		{name: "the same bytes again", method: "PATCH", path: uploadPlace, body: scriptOther[:4], header: []string{"Content-Range: 0-3"}},
		{name: "progress after that", method: "GET", path: uploadPlace},
		start("a malformed range"),
		{name: "chunk with a malformed Content-Range", method: "PATCH", path: uploadPlace, body: scriptLayer, header: []string{"Content-Range: all of it"}},
		start("a wrong length"),
		{name: "chunk shorter than its Content-Range", method: "PATCH", path: uploadPlace, body: scriptLayer, header: []string{"Content-Range: 0-99"}},
		start("another type"),
		{name: "stream of another type", method: "PATCH", path: uploadPlace, body: scriptLayer, header: []string{"Content-Type: application/gzip"}},
		{name: "progress of an upload that never was", method: "GET", path: uploads + "00000000-0000-4000-8000-000000000000"},
		{name: "start in an invalid repository", method: "POST", path: "/v2/lib/-app/blobs/uploads/"},
		{name: "PUT to uploads", method: "PUT", path: uploads},
	}
}

func scriptMounts() []differencesStep {
	mount := func(name, query string) differencesStep {
		return differencesStep{name: name, method: "POST", path: "/v2/lib/mounted/blobs/uploads/?" + query}
	}
	return []differencesStep{
		mount("mount", "mount="+digestOf(scriptLayer)+"&from=lib/app"),
		{name: "mounted blob", method: "HEAD", path: "/v2/lib/mounted/blobs/" + digestOf(scriptLayer)},
		mount("mount from an unknown repository", "mount="+digestOf(scriptConfig)+"&from=lib/nowhere"),
		mount("mount of an unknown blob", "mount="+digestOf([]byte("nowhere"))+"&from=lib/app"),
		mount("mount of a malformed digest", "mount=nonsense&from=lib/app"),
		mount("mount from an invalid name", "mount="+digestOf(scriptConfig)+"&from=Lib"),
		mount("mount from anywhere", "mount="+digestOf(scriptConfig)),
	}
}

func scriptBlobs() []differencesStep {
	blob := "/v2/lib/app/blobs/" + digestOf(scriptLayer)
	ranged := func(name, value string) differencesStep {
		return differencesStep{name: name, method: "GET", path: blob, header: []string{"Range: bytes=" + value}}
	}
	return []differencesStep{
		{name: "blob", method: "GET", path: blob},
		{name: "blob, HEAD", method: "HEAD", path: blob},
		{name: "blob of no bytes", method: "GET", path: "/v2/lib/app/blobs/" + digestOf(nil)},
		{name: "blob with an escaped colon", method: "GET", path: strings.Replace(blob, "sha256:", "sha256%3A", 1)},
		{name: "blob that the client has", method: "GET", path: blob, header: []string{`If-None-Match: "` + digestOf(scriptLayer) + `"`}},
		{name: "blob, compressed if possible", method: "GET", path: blob, header: []string{"Accept-Encoding: gzip"}},
		ranged("range", "2-5"),
		ranged("range to the end", "10-"),
		ranged("last bytes", "-4"),
		ranged("range that ends too late", "10-99"),
		ranged("range that begins too late", "99-"),
		ranged("backward range", "5-2"),
		ranged("two ranges", "0-1,4-5"),
		{name: "range in another unit", method: "GET", path: blob, header: []string{"Range: lines=1-2"}},
		{name: "range, HEAD", method: "HEAD", path: blob, header: []string{"Range: bytes=2-5"}},
		{name: "range of an older blob", method: "GET", path: blob, header: []string{"Range: bytes=2-5", `If-Range: "other"`}},
		{name: "unknown blob", method: "GET", path: "/v2/lib/app/blobs/" + digestOf([]byte("nowhere"))},
		{name: "unknown blob, HEAD", method: "HEAD", path: "/v2/lib/app/blobs/" + digestOf([]byte("nowhere"))},
		{name: "blob by a malformed digest", method: "GET", path: "/v2/lib/app/blobs/sha256:short"},
		{name: "blob of another repository", method: "GET", path: "/v2/lib/other/blobs/" + digestOf(scriptLayer)},
		{name: "blob, PUT", method: "PUT", path: blob},
	}
}

// putManifest is a step that pushes a manifest.
func putManifest(name, reference, mediaType string, content []byte) differencesStep {
	step := differencesStep{name: name, method: "PUT", path: "/v2/lib/app/manifests/" + reference, body: content}
	if mediaType != "" {
		step.header = []string{"Content-Type: " + mediaType}
	}
	return step
}

func scriptManifests() []differencesStep {
	manifests := "/v2/lib/app/manifests/"
	chunked := putManifest("push an image of unknown length", "latest", ociImage, scriptImage)
	chunked.chunked = true
	get := func(name, method, reference string, header ...string) differencesStep {
		return differencesStep{name: name, method: method, path: manifests + reference, header: header}
	}
	return []differencesStep{
		putManifest("push an image", "latest", ociImage, scriptImage),
		putManifest("push it again", "latest", ociImage, scriptImage),
		chunked,
		putManifest("push by digest", digestOf(scriptImage), ociImage, scriptImage),
		putManifest("push a Docker image", "docker", dockerImageType, scriptDocker),
		putManifest("push a Docker list", "list", dockerList, scriptList),
		putManifest("push an index", "index", ociIndex, scriptIndex),
		putManifest("push an artifact", "artifact", ociImage, scriptArtifact),
		putManifest("push a signature", digestOf(scriptSignature), ociImage, scriptSignature),
		putManifest("push an image with a foreign layer", "foreign", ociImage, scriptForeign),
		putManifest("push an index without its image", "sparse", ociIndex, scriptSparse),
		putManifest("push with parameters of the type", "latest", ociImage+"; charset=utf-8", scriptImage),
		get("manifest", "GET", "latest", "Accept: "+ociImage),
		get("manifest, HEAD", "HEAD", "latest", "Accept: "+ociImage),
		get("manifest by digest", "GET", digestOf(scriptImage), "Accept: "+ociImage),
		get("manifest by digest, HEAD", "HEAD", digestOf(scriptImage), "Accept: "+ociImage),
		get("manifest for anybody", "GET", "latest"),
		get("manifest for */*", "GET", "latest", "Accept: */*"),
		get("manifest for Docker alone", "GET", "latest", "Accept: "+dockerImageType),
		get("index", "GET", "index", "Accept: "+ociIndex),
		get("index for anybody", "GET", "index"),
		get("Docker image", "GET", "docker", "Accept: "+dockerImageType),
		get("Docker image for anybody", "GET", "docker"),
		get("Docker list for one who knows no lists", "GET", "list", "Accept: "+dockerImageType),
		get("manifest that the client has", "GET", "latest", "Accept: "+ociImage, `If-None-Match: "`+digestOf(scriptImage)+`"`),
		get("unknown tag", "GET", "nothing"),
		get("unknown tag, HEAD", "HEAD", "nothing"),
		get("unknown manifest", "GET", digestOf([]byte("nowhere"))),
		get("blob as a manifest", "GET", digestOf(scriptConfig)),
		get("manifest of a malformed reference", "GET", "-bad"),
		get("manifest of a malformed digest", "GET", "sha256:short"),
		get("manifest, POST", "POST", "latest"),
		{name: "manifest as a blob", method: "GET", path: "/v2/lib/app/blobs/" + digestOf(scriptImage)},
	}
}

func scriptFaultyManifests() []differencesStep {
	huge := append(append([]byte{}, scriptImage...), bytes.Repeat([]byte(" "), 4<<20)...)
	return []differencesStep{
		putManifest("push without a layer", "bad", ociImage, scriptLacking),
		putManifest("push by another digest", digestOf(scriptIndex), ociImage, scriptImage),
		putManifest("push by a malformed digest", "sha256:short", ociImage, scriptImage),
		putManifest("push to a malformed tag", "-bad", ociImage, scriptImage),
		putManifest("push as another type", "bad", dockerImageType, scriptImage),
		putManifest("push as an unknown type", "bad", "application/json", scriptImage),
		putManifest("push without a type", "bad", "", scriptImage),
		putManifest("push without any type", "bad", "", scriptUntyped),
		putManifest("push of text", "bad", ociImage, []byte("no JSON")),
		putManifest("push of nothing", "bad", ociImage, nil),
		putManifest("push of both kinds in one", "bad", ociImage, scriptBoth),
		putManifest("push of schema 1", "bad", "application/vnd.docker.distribution.manifest.v1+json", scriptOld),
		putManifest("push of more than 4 MiB", "bad", ociImage, huge),
	}
}

func scriptLists() []differencesStep {
	list := func(name, path string) differencesStep {
		return differencesStep{name: name, method: "GET", path: path}
	}
	push := func(tag string) differencesStep {
		step := putManifest("push an empty index to "+tag, tag, ociIndex, scriptHollow)
		step.path = "/v2/lib/lists/manifests/" + tag
		return step
	}
	tags := "/v2/lib/lists/tags/list"
	return []differencesStep{
		{name: "mount, for the catalog", method: "POST", path: "/v2/lib/lists/blobs/uploads/?mount=" + digestOf(scriptLayer) + "&from=lib/app"},
		push("c"), push("a"), push("d"), push("b"),
		list("tags", tags),
		list("tags, two", tags+"?n=2"),
		list("tags, two after b", tags+"?n=2&last=b"),
		list("tags after b", tags+"?last=b"),
		list("tags after the last", tags+"?n=2&last=zzz"),
		list("no tags", tags+"?n=0"),
		list("tags, -1", tags+"?n=-1"),
		list("tags, x", tags+"?n=x"),
		list("tags, more than allowed", tags+"?n=1000000"),
		{name: "tags, HEAD", method: "HEAD", path: tags},
		{name: "tags, POST", method: "POST", path: tags},
		list("tags of a repository with blobs alone", "/v2/lib/mounted/tags/list"),
		list("catalog", "/v2/_catalog"),
		list("catalog, one", "/v2/_catalog?n=1"),
		list("catalog, one after lib/app", "/v2/_catalog?n=1&last=lib/app"),
		list("catalog, none", "/v2/_catalog?n=0"),
		list("catalog, x", "/v2/_catalog?n=x"),
		list("catalog, more than allowed", "/v2/_catalog?n=1000000"),
		list("referrers", "/v2/lib/app/referrers/"+digestOf(scriptImage)),
		list("referrers of an unknown repository", "/v2/lib/nowhere/referrers/"+digestOf(scriptImage)),
	}
}

func scriptDeletes() []differencesStep {
	remove := func(name, path string) differencesStep {
		return differencesStep{name: name, method: "DELETE", path: "/v2/lib/app/" + path}
	}
	image := "manifests/" + digestOf(scriptImage)
	return []differencesStep{
		remove("delete a tag", "manifests/artifact"),
		remove("delete a tag again", "manifests/artifact"),
		{name: "manifest without its tag", method: "GET", path: "/v2/lib/app/manifests/" + digestOf(scriptArtifact), header: []string{"Accept: " + ociImage}},
		remove("delete a manifest", image),
		remove("delete a manifest again", image),
		{name: "tag of a deleted manifest", method: "GET", path: "/v2/lib/app/manifests/latest", header: []string{"Accept: " + ociImage}},
		remove("delete a manifest by a malformed digest", "manifests/sha256:short"),
		remove("delete a blob", "blobs/"+digestOf(scriptLayer)),
		remove("delete a blob again", "blobs/"+digestOf(scriptLayer)),
		{name: "deleted blob, HEAD", method: "HEAD", path: "/v2/lib/app/blobs/" + digestOf(scriptLayer)},
		{name: "deleted blob where it was mounted, HEAD", method: "HEAD", path: "/v2/lib/mounted/blobs/" + digestOf(scriptLayer)},
		remove("delete an unknown blob", "blobs/"+digestOf([]byte("nowhere"))),
		remove("delete a blob by a malformed digest", "blobs/sha256:short"),
	}
}
