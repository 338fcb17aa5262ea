package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// differencesFile has the differences that are meant, each with its reason.
const differencesFile = "../../docs/differences.md"

// difference is one cell in which the two registries' answers are not the same.
type difference struct {
	// request is the step's name, or anyRequest for the same difference in all of them.
	request string
	// what is answerCell, or a header's name.
	what string
	// reference is docker-registry's value, atoll ours; absent for a header that is not there.
	reference, atoll string
}

const (
	anyRequest = "any"
	absent     = "none"
	// answerCell is the status and what the body is. Where the status differs, the
	// headers follow from it and are not compared.
	answerCell = "answer"
)

// String is the row of the document.
func (d difference) String() string {
	cell := func(value string) string {
		if value == absent {
			return value
		}
		return "`" + strings.ReplaceAll(value, "|", `\|`) + "`"
	}
	return fmt.Sprintf("| %s | %s | %s | %s |", d.request, d.what, cell(d.reference), cell(d.atoll))
}

// The same requests are answered as Debian's docker-registry answers them, except
// for what docs/differences.md lists, and all of that still differs.
func TestDifferences(t *testing.T) {
	requireTool(t, "docker-registry")
	listed := listedDifferences(t)
	steps := differencesScript()
	reference := answers(t, startReference(t), steps)
	ours := answers(t, "http://"+startDev(t, t.TempDir(), "--nodes=1").host("n1"), steps)
	if t.Failed() {
		return
	}
	seen := map[difference]bool{}
	for i, step := range steps {
		for _, d := range compare(step.name, reference[i], ours[i]) {
			general := d
			general.request = anyRequest
			switch {
			case listed[d]:
				seen[d] = true
			case listed[general]:
				seen[general] = true
			default:
				t.Errorf("not listed in docs/differences.md, with its reason:\n%s", d)
			}
		}
	}
	for d := range listed {
		if !seen[d] {
			t.Errorf("listed in docs/differences.md, but not so any more:\n%s", d)
		}
	}
}

// listedDifferences reads the tables of the document. A table without a sentence
// above it has no reason.
func listedDifferences(t *testing.T) map[difference]bool {
	t.Helper()
	content, err := os.ReadFile(differencesFile)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[difference]bool{}
	reason := ""
	for number, line := range strings.Split(string(content), "\n") {
		switch {
		case strings.HasPrefix(line, "## "):
			reason = ""
		case !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| request "):
			reason += strings.Trim(line, "|- ")
		default:
			cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "| "), `\|`, "\x00"), " | ")
			if len(cells) != 4 || reason == "" {
				t.Fatalf("%s:%d: a row of %d cells under %q, want 4 under a reason", differencesFile, number+1, len(cells), reason)
			}
			for i := range cells {
				cells[i] = strings.ReplaceAll(strings.Trim(cells[i], "` "), "\x00", "|")
			}
			d := difference{cells[0], cells[1], cells[2], cells[3]}
			if listed[d] {
				t.Errorf("%s:%d: listed twice", differencesFile, number+1)
			}
			listed[d] = true
		}
	}
	if len(listed) == 0 {
		t.Fatalf("%s lists nothing", differencesFile)
	}
	return listed
}

// compare returns where two answers to one request differ.
func compare(request string, reference, ours map[string]string) []difference {
	fields := maps.Clone(reference)
	maps.Copy(fields, ours)
	otherStatus := reference[answerCell][:3] != ours[answerCell][:3]
	var found []difference
	for _, what := range slices.Sorted(maps.Keys(fields)) {
		if otherStatus && what != answerCell {
			continue
		}
		d := difference{request, what, absent, absent}
		if value, ok := reference[what]; ok {
			d.reference = value
		}
		if value, ok := ours[what]; ok {
			d.atoll = value
		}
		if d.reference != d.atoll {
			found = append(found, d)
		}
	}
	return found
}

// startReference runs Debian's docker-registry on loopback, with the settings of
// its package except for the password. It returns its URL.
func startReference(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	address := "127.0.0.1:" + strconv.Itoa(freePort(t))
	config := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http:
  addr: %s
  secret: not secret
  headers: {X-Content-Type-Options: [nosniff]}
`, filepath.Join(dir, "data"), address)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", file)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			const most = 4 << 10
			printed := out.String()
			t.Logf("docker-registry printed at last:\n%s", printed[max(0, len(printed)-most):])
		}
	})
	eventually(t, formTimeout, "docker-registry answers", func() bool {
		return httpStatus(t, "http://"+address+"/v2/") == http.StatusOK
	})
	return "http://" + address
}

// answers runs the script against one registry.
func answers(t *testing.T, registry string, steps []differencesStep) []map[string]string {
	t.Helper()
	location := ""
	var all []map[string]string
	for _, step := range steps {
		target, err := url.Parse(registry + strings.Replace(step.path, uploadPlace, location, 1))
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if step.digest != "" {
			query := target.Query()
			query.Set("digest", step.digest)
			target.RawQuery = query.Encode()
		}
		response, body := step.send(t, target.String())
		if at := response.Header.Get("Location"); strings.Contains(at, "/blobs/uploads/") {
			location = strings.TrimPrefix(at, registry)
		}
		all = append(all, normalise(response, body))
	}
	return all
}

// send sends the step's request, without following where it is sent.
func (s differencesStep) send(t *testing.T, target string) (*http.Response, []byte) {
	t.Helper()
	var body io.Reader = bytes.NewReader(s.body)
	if s.chunked {
		body = io.MultiReader(body) // whose length net/http does not know
	}
	request, err := http.NewRequestWithContext(t.Context(), s.method, target, body)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	for _, header := range s.header {
		name, value, _ := strings.Cut(header, ": ")
		request.Header.Add(name, value)
	}
	client := http.Client{
		Timeout:       commandTimeout,
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		content = []byte(shorter)
	} else if err != nil {
		t.Fatalf("%s: read answer: %v", s.name, err)
	}
	return response, content
}

// shorter stands for a body with fewer bytes than its Content-Length says.
const shorter = "shorter than Content-Length"

// What a registry makes up, and no two of them alike.
var (
	madeUpID     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	madeUpBounds = regexp.MustCompile(`boundary=[0-9a-f]+`)
)

// normalise returns the cells of an answer: its status, its headers and its body's
// shape. Left out is what is for people, like the messages of errors, and what
// differs from one answer to the next.
func normalise(response *http.Response, body []byte) map[string]string {
	cells := map[string]string{answerCell: strconv.Itoa(response.StatusCode) + " " + shape(response, body)}
	for name, values := range response.Header {
		value := strings.Join(values, ", ")
		switch name {
		case "Date", "Content-Length":
			continue
		case "Docker-Upload-Uuid", "X-Request-Id":
			value = "an id"
		case "Location":
			target, err := url.Parse(value)
			if err != nil {
				value = "not a URL: " + value
				break
			}
			cells["form of Location"] = "path"
			if target.IsAbs() {
				cells["form of Location"] = "URL"
			}
			value = madeUpID.ReplaceAllString(target.Path, "ID")
			if target.RawQuery != "" {
				cells["query of Location"] = strings.Join(slices.Sorted(maps.Keys(target.Query())), " ")
			}
		}
		cells[name] = nameDigests(madeUpBounds.ReplaceAllString(value, "boundary=B"))
	}
	switch length := response.ContentLength; {
	case length < 0:
		cells["Content-Length"] = absent
	case response.StatusCode < 400 && (response.Request.Method == http.MethodHead || length != int64(len(body))):
		cells["Content-Length"] = strconv.FormatInt(length, 10)
	default:
		cells["Content-Length"] = "the body's"
	}
	return cells
}
