package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// RestoreSummary is what a restore has done.
type RestoreSummary struct {
	Repositories uint64 `json:"repositories"`
	Manifests    uint64 `json:"manifests"`
	Tags         uint64 `json:"tags"`
	// Accounts are those that the cluster had not. Policy tells whether it got the policy:
	// not if it had one of its own, nor if the backup has none.
	Accounts uint64 `json:"accounts"`
	Policy   bool   `json:"policy"`
	// Blobs were sent, BlobBytes in all; those that the cluster had are not counted.
	Blobs     uint64 `json:"blobs"`
	BlobBytes uint64 `json:"blob_bytes"`
	// Faults are what could not be restored, the first thousand of FaultCount.
	FaultCount uint64   `json:"fault_count"`
	Faults     []string `json:"faults,omitempty"`
}

// ErrNotEmpty says that a backup is not restored over what a cluster has.
var ErrNotEmpty = errors.New("the cluster has repositories already")

// Restore brings the policy, accounts, repositories, blobs, manifests and tags of a
// backup into a cluster
// of any size, through the node whose data folder is given, as clients would push
// them. from is the backup's folder, or one of its metadata files. The cluster must
// be empty, unless resume says that an earlier restore was cut off: what is there
// already is not sent again.
//
// What could not be restored is in the summary, and does not end the restore.
func Restore(ctx context.Context, dataDir, from string, resume bool) (*RestoreSummary, error) {
	work, err := os.MkdirTemp("", "atoll-restore-")
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }() // temporary
	summary, err := runRestore(ctx, dataDir, from, filepath.Join(work, "state"), resume)
	if err != nil {
		return nil, fmt.Errorf("restore from %s: %w", from, err)
	}
	return summary, nil
}

func runRestore(ctx context.Context, dataDir, from, work string, resume bool) (*RestoreSummary, error) {
	file, err := metadataFile(from)
	if err != nil {
		return nil, err
	}
	archive, err := openArchive(file, work)
	if err != nil {
		return nil, err
	}
	defer func() { _ = archive.Close() }() // it was only read
	r := &restore{dir: filepath.Dir(file), dataDir: dataDir, client: adminClient(dataDir), archive: archive}
	if !resume {
		if err := r.requireEmpty(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.access(ctx); err != nil {
		return nil, err
	}
	err = eachRepository(ctx, archive.Store, func(repository string) error {
		r.summary.Repositories++
		return r.repository(ctx, repository)
	})
	return &r.summary, err
}

// metadataFile finds the state that a backup's folder says is complete.
func metadataFile(from string) (string, error) {
	info, err := os.Stat(from)
	if err != nil || !info.IsDir() {
		return from, err
	}
	content, err := os.ReadFile(filepath.Join(from, backupFile))
	if err != nil {
		return "", fmt.Errorf("no backup was completed there: %w", err)
	}
	var summary BackupSummary
	if err := json.Unmarshal(content, &summary); err != nil {
		return "", fmt.Errorf("%s: %w", backupFile, err)
	}
	if summary.Format != backupFormat {
		return "", fmt.Errorf("%s: it has format %d, this version of atoll knows format %d", backupFile, summary.Format, backupFormat)
	}
	return filepath.Join(from, filepath.Base(summary.Metadata)), nil
}

// restore is a restore under way.
type restore struct {
	dir, dataDir string
	client       *http.Client
	archive      *metadata.Archive

	mu      sync.Mutex // guards summary while blobs are sent
	summary RestoreSummary
}

func (r *restore) requireEmpty(ctx context.Context) error {
	response, body, err := r.do(ctx, http.MethodGet, "/v2/_catalog?n=1", nil, nil)
	if err != nil {
		return err
	}
	var catalog struct {
		Repositories []string `json:"repositories"`
	}
	if response.StatusCode != http.StatusOK || json.Unmarshal(body, &catalog) != nil {
		return fmt.Errorf("ask for the catalog: the node answered %s: %s", response.Status, body)
	}
	if len(catalog.Repositories) > 0 {
		return fmt.Errorf("%w, such as %s: restore into an empty cluster, or use --resume if this one is from a restore that was cut off", ErrNotEmpty, catalog.Repositories[0])
	}
	return nil
}

// do sends one request to the registry, by the operator's socket, and reads the
// answer.
func (r *restore) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, body)
	if err != nil {
		return nil, nil, err
	}
	for key, values := range header {
		request.Header[key] = values
	}
	if file, ok := body.(*os.File); ok {
		info, err := file.Stat()
		if err != nil {
			return nil, nil, err
		}
		if request.ContentLength = info.Size(); info.Size() == 0 {
			request.Body = http.NoBody
		}
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, nil, fmt.Errorf("ask node in %s: %w", r.dataDir, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, adminErrorBytes))
	return response, content, err
}

// repository restores one: blobs before the manifests that name them, manifests
// before the image indexes that list them, all before tags.
func (r *restore) repository(ctx context.Context, name string) error {
	group, blobs := errgroup.WithContext(ctx)
	group.SetLimit(backupConcurrency)
	links := func(after string) ([]string, bool, error) { return r.archive.Links(ctx, name, after, verifyPage) }
	err := eachPage(links, func(digest string) error {
		group.Go(func() error { return r.faultOf(blobs, name+"@"+digest, r.blob(blobs, name, digest)) })
		return blobs.Err()
	})
	if err := errors.Join(group.Wait(), err); err != nil {
		return err
	}
	done := make(map[string]bool)
	manifests := func(after string) ([]string, bool, error) { return r.archive.Manifests(ctx, name, after, verifyPage) }
	if err := eachPage(manifests, func(digest string) error { return r.manifest(ctx, name, digest, done) }); err != nil {
		return err
	}
	tags := func(after string) ([]string, bool, error) { return r.archive.Tags(ctx, name, after, verifyPage) }
	return eachPage(tags, func(tag string) error {
		manifest, err := r.archive.ManifestByTag(ctx, name, tag)
		if err == nil {
			err = r.put(ctx, name, tag, manifest)
		}
		if err == nil {
			r.summary.Tags++
		}
		return r.faultOf(ctx, name+":"+tag, err)
	})
}

// faultOf takes down what could not be restored. Only the end of ctx ends the
// restore.
func (r *restore) faultOf(ctx context.Context, what string, err error) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.FaultCount++
	if len(r.summary.Faults) < maxBackupFaults {
		r.summary.Faults = append(r.summary.Faults, fmt.Sprintf("%s: %v", what, err))
	}
	return nil
}

// blob links a blob in a repository: sent before for another one, or sent now. The
// node compares it with its digest.
func (r *restore) blob(ctx context.Context, repository, digest string) error {
	query := url.Values{"mount": {digest}}
	response, answer, err := r.do(ctx, http.MethodPost, "/v2/"+repository+"/blobs/uploads/?"+query.Encode(), nil, nil)
	if err != nil {
		return err
	}
	if response.StatusCode == http.StatusCreated {
		return nil
	}
	if response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("begin upload: the node answered %s: %s", response.Status, answer)
	}
	path, err := blobFile(r.dir, digest)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	location, err := url.Parse(response.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("begin upload: %w", err)
	}
	query = location.Query()
	query.Set("digest", digest)
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	response, answer, err = r.do(ctx, http.MethodPut, location.Path+"?"+query.Encode(), header, file)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("the node answered %s: %s", response.Status, strings.TrimSpace(string(answer)))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Blobs, r.summary.BlobBytes = r.summary.Blobs+1, r.summary.BlobBytes+uint64(info.Size())
	return nil
}

// manifest puts a manifest by its digest, those that it lists before.
func (r *restore) manifest(ctx context.Context, repository, digest string, done map[string]bool) error {
	if done[digest] {
		return nil
	}
	done[digest] = true
	manifest, err := r.archive.Manifest(ctx, repository, digest)
	if errors.Is(err, metadata.ErrManifestUnknown) {
		return nil // An image index may list what is not there.
	}
	if err != nil {
		return err
	}
	for _, child := range manifest.GetManifests() {
		if err := r.manifest(ctx, repository, child.GetDigest(), done); err != nil {
			return err
		}
	}
	if err = r.put(ctx, repository, digest, manifest); err == nil {
		r.summary.Manifests++
	}
	return r.faultOf(ctx, repository+"@"+digest, err)
}

// put puts a manifest by tag or digest.
func (r *restore) put(ctx context.Context, repository, reference string, manifest *atoll.Manifest) error {
	content := manifest.GetContent()
	if manifest.GetStoredAsBlob() {
		path, err := blobFile(r.dir, manifest.GetDigest())
		if err != nil {
			return err
		}
		if content, err = os.ReadFile(path); err != nil {
			return err
		}
	}
	digester, err := newDigester(manifest.GetDigest())
	if err != nil {
		return err
	}
	digester.Write(content)
	if err := digester.check(); err != nil {
		return err // By tag, the node could not know.
	}
	header := http.Header{"Content-Type": {manifest.GetMediaType()}}
	response, answer, err := r.do(ctx, http.MethodPut, "/v2/"+repository+"/manifests/"+reference, header, bytes.NewReader(content))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("the node answered %s: %s", response.Status, strings.TrimSpace(string(answer)))
	}
	return nil
}
