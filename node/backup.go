package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/metadata"
)

// A backup is a folder:
//
//	metadata-LOGINDEX.atoll     the state of the cluster, as Machine.Snapshot gives it; secret
//	blobs/ALGORITHM/xx/HEX      the bytes of a blob, by its digest; xx are its first two digits
//	backup.json                 what the newest complete backup is; written last
//
// Everything gets its name only when it is whole and durable, so that a backup that
// was cut off is seen by what backup.json does not say.
const (
	backupFile        = "backup.json"
	backupBlobs       = "blobs"
	backupWork        = ".state-*"
	backupFormat      = 1
	logIndexHeader    = "Atoll-Log-Index"
	backupConcurrency = 4
	// maxBackupFaults bounds the faults that are listed; all are counted.
	maxBackupFaults = 1000
)

// BackupSummary is what backup.json says.
type BackupSummary struct {
	Format int `json:"format"`
	// Cluster is the id of the cluster, LogIndex how far its state was.
	Cluster  string    `json:"cluster"`
	LogIndex uint64    `json:"log_index"`
	Time     time.Time `json:"time"`
	// Metadata is the name of the file with the state.
	Metadata string `json:"metadata"`
	// WithBlobs: the blobs are there too, so many with so many bytes; Copied and
	// CopiedBytes of them were new.
	WithBlobs   bool   `json:"with_blobs"`
	Blobs       uint64 `json:"blobs"`
	BlobBytes   uint64 `json:"blob_bytes"`
	Copied      uint64 `json:"copied"`
	CopiedBytes uint64 `json:"copied_bytes"`
	// Deleted are blobs that the state names and that the cluster had no more when their
	// turn came, Faults what could not be read, the first thousand of FaultCount.
	Deleted    uint64   `json:"deleted,omitempty"`
	FaultCount uint64   `json:"fault_count,omitempty"`
	Faults     []string `json:"faults,omitempty"`
}

// serveBackup sends the state as it is now, with everything that was acknowledged
// before the request. It has all keys of the cluster in it, so that who fetches it is
// written down.
func (a *admin) serveBackup(w http.ResponseWriter, r *http.Request) {
	if err := a.store.CatchUp(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	state, size, logIndex, err := a.machine.Snapshot()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer state.Close()
	a.auditAdmin(r, "backup", "state", fmt.Sprintf("up to log index %d, handed out", logIndex), nil)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.Header().Set(logIndexHeader, strconv.FormatUint(logIndex, 10))
	_, _ = io.Copy(w, state) // A receiver that gets less than that knows.
}

// BackupMetadata writes the state of the cluster to a file, through the node whose
// data folder is given, and reads it back. The file is secret.
func BackupMetadata(ctx context.Context, dataDir, file string) (*BackupSummary, error) {
	b := &backup{dataDir: dataDir, dir: filepath.Dir(file), client: adminClient(dataDir)}
	summary, err := b.metadata(ctx, func(uint64) string { return filepath.Base(file) })
	if err != nil {
		return nil, fmt.Errorf("back up metadata to %s: %w", file, err)
	}
	return summary, b.close()
}

// Backup writes a backup of the cluster into a folder, which is made if need be and
// may have older ones, through the node whose data folder is given. With blobs, the
// bytes of all blobs that are not there yet are copied, each compared with its
// digest. With reread, those that are there are compared again, too.
//
// What could not be read is in the summary, and does not end the backup.
func Backup(ctx context.Context, dataDir, dir string, blobs, reread bool) (*BackupSummary, error) {
	summary, err := runBackup(ctx, dataDir, dir, blobs, reread)
	if err != nil {
		return nil, fmt.Errorf("back up to %s: %w", dir, err)
	}
	return summary, nil
}

func runBackup(ctx context.Context, dataDir, dir string, blobs, reread bool) (*BackupSummary, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	b := &backup{dataDir: dataDir, dir: dir, reread: reread, client: adminClient(dataDir)}
	summary, err := b.metadata(ctx, func(logIndex uint64) string { return fmt.Sprintf("metadata-%020d.atoll", logIndex) })
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.close() }() // The backup is none the worse for what is left.
	b.summary = summary
	if blobs {
		summary.WithBlobs = true
		if err := b.blobs(ctx); err != nil {
			return nil, err
		}
	}
	encoded, err := json.MarshalIndent(summary, "", "  ")
	if err != nil {
		return nil, err
	}
	return summary, writeDurably(filepath.Join(dir, backupFile), strings.NewReader(string(encoded)+"\n"))
}

// backup is a backup being made.
type backup struct {
	dataDir, dir string
	reread       bool
	client       *http.Client
	archive      *metadata.Archive
	// work is the folder in which the state is opened meanwhile. It has a name that
	// nothing else had: what is beside the backup is not ours.
	work string

	mu      sync.Mutex // guards summary
	summary *BackupSummary
}

// close ends what metadata has begun.
func (b *backup) close() error { return errors.Join(b.archive.Close(), os.RemoveAll(b.work)) }

// metadata fetches the state and opens it.
func (b *backup) metadata(ctx context.Context, name func(logIndex uint64) string) (*BackupSummary, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/backup", nil)
	if err != nil {
		return nil, err
	}
	response, err := b.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask node in %s: no node answers there: %w", b.dataDir, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, adminErrorBytes)) // the status says enough without
		return nil, fmt.Errorf("ask node in %s: it answered %s: %s", b.dataDir, response.Status, strings.TrimSpace(string(text)))
	}
	logIndex, err := strconv.ParseUint(response.Header.Get(logIndexHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("ask node in %s: it did not say how far the state is: %w", b.dataDir, err)
	}
	summary := &BackupSummary{Format: backupFormat, LogIndex: logIndex, Time: time.Now().UTC(), Metadata: name(logIndex)}
	file := filepath.Join(b.dir, summary.Metadata)
	if err := writeDurably(file, response.Body); err != nil {
		return nil, err
	}
	if b.work, err = os.MkdirTemp(b.dir, backupWork); err != nil {
		return nil, fmt.Errorf("%w: %w", errBackupFile, err)
	}
	if b.archive, err = openArchive(file, b.work); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.work))
	}
	summary.Cluster = b.archive.ClusterID()
	return summary, nil
}

// openArchive opens a file with a state in an empty folder.
func openArchive(file, work string) (*metadata.Archive, error) {
	state, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	archive, err := metadata.OpenArchive(work, bufio.NewReaderSize(state, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return archive, nil
}

// blobs copies what repositories have, and large manifests.
func (b *backup) blobs(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(backupConcurrency)
	copyBlob := func(digest string, size uint64) {
		group.Go(func() error { return b.blob(ctx, digest, size) })
	}
	err := b.linked(ctx, copyBlob)
	if err == nil {
		err = b.largeManifests(ctx, copyBlob)
	}
	return errors.Join(group.Wait(), err)
}

// linked calls visit for each blob that a repository has.
func (b *backup) linked(ctx context.Context, visit func(digest string, size uint64)) error {
	for after := ""; ctx.Err() == nil; {
		blobs, err := b.archive.Blobs(after, verifyPage)
		if err != nil {
			return err
		}
		for _, blob := range blobs {
			after = blob.GetDigest()
			repositories, _, err := b.archive.BlobRepositories(ctx, after, "", 1)
			if err != nil {
				return err
			}
			if len(repositories) > 0 {
				visit(after, blob.GetSize())
			}
		}
		if len(blobs) < verifyPage {
			break
		}
	}
	return ctx.Err()
}

// largeManifests calls visit for each manifest whose bytes are in a blob.
func (b *backup) largeManifests(ctx context.Context, visit func(digest string, size uint64)) error {
	seen := make(map[string]bool)
	return eachRepository(ctx, b.archive.Store, func(repository string) error {
		manifests := func(after string) ([]string, bool, error) {
			return b.archive.Manifests(ctx, repository, after, verifyPage)
		}
		return eachPage(manifests, func(digest string) error {
			manifest, err := b.archive.Manifest(ctx, repository, digest)
			if err == nil && manifest.GetStoredAsBlob() && !seen[digest] {
				seen[digest] = true
				visit(digest, manifest.GetSize())
			}
			return errors.Join(err, ctx.Err())
		})
	})
}

func eachRepository(ctx context.Context, store *metadata.Store, visit func(repository string) error) error {
	return eachPage(func(after string) ([]string, bool, error) { return store.Repositories(ctx, after, verifyPage) }, visit)
}

// blob sees to it that a blob is in the backup. Of two that copy the same one at
// once both are right.
func (b *backup) blob(ctx context.Context, digest string, size uint64) error {
	file, err := blobFile(b.dir, digest)
	if err != nil {
		return b.fault(digest, err)
	}
	if info, err := os.Stat(file); err == nil && uint64(info.Size()) == size && (!b.reread || checkFile(file, digest) == nil) {
		b.count(func(s *BackupSummary) { s.Blobs, s.BlobBytes = s.Blobs+1, s.BlobBytes+size })
		return nil
	}
	err = b.fetch(ctx, file, digest)
	switch {
	case err == nil:
		b.count(func(s *BackupSummary) {
			s.Blobs, s.BlobBytes = s.Blobs+1, s.BlobBytes+size
			s.Copied, s.CopiedBytes = s.Copied+1, s.CopiedBytes+size
		})
	case errors.Is(err, fs.ErrNotExist):
		b.count(func(s *BackupSummary) { s.Deleted++ })
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errBackupFile):
		return err
	default:
		return b.fault(digest, err)
	}
	return nil
}

// errBackupFile says that the backup can't be written: then nothing else can.
var errBackupFile = errors.New("write backup")

// fetch copies a blob. It fails with fs.ErrNotExist if the cluster has it no more: no
// single repository is asked, which may have dropped what another one still has.
func (b *backup) fetch(ctx context.Context, file, digest string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/blobs/"+digest, nil)
	if err != nil {
		return err
	}
	response, err := b.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fs.ErrNotExist
	default:
		text, _ := io.ReadAll(io.LimitReader(response.Body, adminErrorBytes)) // the status says enough without
		return fmt.Errorf("the node answered %s: %s", response.Status, strings.TrimSpace(string(text)))
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("%w: %w", errBackupFile, err)
	}
	digester, err := newDigester(digest)
	if err != nil {
		return err
	}
	return writeChecked(file, io.TeeReader(response.Body, digester), digester.check)
}

func (b *backup) count(change func(*BackupSummary)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b.summary)
}

func (b *backup) fault(digest string, err error) error {
	b.count(func(s *BackupSummary) {
		s.FaultCount++
		if len(s.Faults) < maxBackupFaults {
			s.Faults = append(s.Faults, fmt.Sprintf("%s: %v", digest, err))
		}
	})
	return nil
}

// blobFile is where a backup has a blob.
func blobFile(dir, digest string) (string, error) {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < 2 || strings.ContainsAny(digest, "/.") {
		return "", fmt.Errorf("digest %q has no place in a backup", digest)
	}
	return filepath.Join(dir, backupBlobs, algorithm, hex[:2], hex), nil
}

// checkFile compares a file with its digest.
func checkFile(path, digest string) error {
	digester, err := newDigester(digest)
	if err != nil {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(digester, file); err != nil {
		return err
	}
	return digester.check()
}

// writeDurably makes a file of what it reads, or leaves the file as it is.
func writeDurably(path string, content io.Reader) error {
	return writeChecked(path, content, func() error { return nil })
}

// writeChecked is writeDurably for content that must pass a check when it was read.
func writeChecked(path string, content io.Reader, check func() error) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("%w: %w", errBackupFile, err)
	}
	defer os.Remove(file.Name()) // It has another name if all went well.
	_, err = io.Copy(backupWriter{file}, content)
	if err == nil {
		err = check()
	}
	if syncErr := file.Sync(); err == nil && syncErr != nil {
		err = fmt.Errorf("%w: %w", errBackupFile, syncErr)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("%w: %w", errBackupFile, err)
	}
	return syncFolder(filepath.Dir(path))
}

// backupWriter tells errors of the backup's disk from those of the node.
type backupWriter struct{ file *os.File }

func (w backupWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	if err != nil {
		err = fmt.Errorf("%w: %w", errBackupFile, err)
	}
	return n, err
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: %w", errBackupFile, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
