package node

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// verifyPage is how many records are listed at once.
	verifyPage = 100
	// verifyTell is how often a verify tells how far it is.
	verifyTell = time.Second
	// verifyBurst is what is read at once after a rest, if there is a rate.
	verifyBurst = 1 << 20
	// verifyNames is how many repositories of a blob are named.
	verifyNames = 20
)

// Verified is what verify tells while it reads everything back: each time one thing.
type Verified struct {
	// Blobs, Manifests and Bytes were read so far, Bad of them are not what they
	// should be.
	Blobs     uint64 `json:"blobs"`
	Manifests uint64 `json:"manifests"`
	Bytes     uint64 `json:"bytes"`
	Bad       uint64 `json:"bad"`
	// Found is set when something is wrong.
	Found *VerifyFault `json:"found,omitempty"`
	// Done is true at the end.
	Done bool `json:"done,omitempty"`
	// Error says why it has ended early.
	Error string `json:"error,omitempty"`
}

// VerifyFault is a blob, or a manifest, that can't be read back to its digest.
type VerifyFault struct {
	// Kind is blob or manifest.
	Kind   string `json:"kind"`
	Digest string `json:"digest"`
	// Repositories have it, the first 20.
	Repositories []string `json:"repositories"`
	Error        string   `json:"error"`
}

// Verify has a cluster read back all its blobs and manifests, through the node whose
// data folder is given, at most so many bytes a second, 0 for no bound, and tells
// what it finds. It fails when not all could be read, or tell does.
func Verify(ctx context.Context, dataDir string, bytesPerSecond uint64, tell func(Verified) error) error {
	query := url.Values{"rate": {strconv.FormatUint(bytesPerSecond, 10)}}
	body, err := openAdmin(ctx, dataDir, http.MethodPost, "/verify?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for decoder := json.NewDecoder(body); ; {
		var one Verified
		if err := decoder.Decode(&one); err != nil {
			return fmt.Errorf("verify: the node in %s did not come to an end: %w", dataDir, err)
		}
		if one.Error != "" {
			return fmt.Errorf("verify: %s", one.Error)
		}
		if err := tell(one); err != nil || one.Done {
			return err
		}
	}
}

func (a *admin) serveVerify(w http.ResponseWriter, r *http.Request) {
	bytesPerSecond, err := strconv.ParseUint(r.URL.Query().Get("rate"), 10, 64)
	if err != nil {
		http.Error(w, "rate is not a number of bytes", http.StatusBadRequest)
		return
	}
	encoder, flush := json.NewEncoder(w), http.NewResponseController(w)
	v := &verifier{store: a.store, read: a.blobs.Read, limiter: rate.NewLimiter(rate.Inf, verifyBurst)}
	if bytesPerSecond > 0 {
		v.limiter.SetLimit(rate.Limit(bytesPerSecond))
	}
	v.tell = func(one Verified) error { return errors.Join(encoder.Encode(one), flush.Flush()) }
	w.Header().Set("Content-Type", "application/json")
	if err := v.run(r.Context()); err != nil {
		v.so.Error = err.Error()
		_ = v.tell(v.so) // A broken connection is the only way that this fails.
	}
}

// verifier reads everything back. It is for one goroutine.
type verifier struct {
	store   *metadata.Store
	read    func(ctx context.Context, extents []*atoll.Extent, offset, length uint64) (io.ReadCloser, error)
	limiter *rate.Limiter
	tell    func(Verified) error

	so   Verified
	told time.Time
}

func (v *verifier) run(ctx context.Context) error {
	if err := v.store.CatchUp(ctx); err != nil {
		return err
	}
	if err := v.blobs(ctx); err != nil {
		return err
	}
	if err := v.manifests(ctx); err != nil {
		return err
	}
	v.so.Done = true
	return v.tell(v.so)
}

// blobs reads all blobs, also those that no repository has and those that manifests
// are stored in.
func (v *verifier) blobs(ctx context.Context) error {
	for after := ""; ; {
		blobs, err := v.store.Blobs(after, verifyPage)
		if err != nil {
			return err
		}
		for _, blob := range blobs {
			if err := v.blob(ctx, after, blob); err != nil {
				return err
			}
			after = blob.GetDigest()
		}
		if len(blobs) < verifyPage {
			return nil
		}
	}
}

// blob reads one blob. before is the digest in front of it.
func (v *verifier) blob(ctx context.Context, before string, blob *atoll.Blob) error {
	fault := v.check(ctx, blob)
	if fault != nil && ctx.Err() == nil {
		// It may have been deleted, or its shards moved, since it was listed.
		again, err := v.store.Blobs(before, 1)
		if err != nil {
			return err
		}
		if len(again) == 0 || again[0].GetDigest() != blob.GetDigest() {
			return nil
		}
		fault = v.check(ctx, again[0])
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	v.so.Blobs++
	if fault == nil {
		return v.progress()
	}
	names, _, err := v.store.BlobRepositories(ctx, blob.GetDigest(), "", verifyNames)
	if err != nil {
		return err
	}
	return v.found(VerifyFault{Kind: "blob", Digest: blob.GetDigest(), Repositories: names, Error: fault.Error()})
}

// check reads a blob and compares what it read with its digest.
func (v *verifier) check(ctx context.Context, blob *atoll.Blob) error {
	digester, err := newDigester(blob.GetDigest())
	if err != nil {
		return err
	}
	reader, err := v.read(ctx, blob.GetExtents(), 0, blob.GetSize())
	if err != nil {
		return err
	}
	defer reader.Close()
	buffer := make([]byte, 256<<10)
	for {
		n, err := reader.Read(buffer)
		v.so.Bytes += uint64(n)
		digester.Write(buffer[:n])
		if waitErr := v.limiter.WaitN(ctx, n); waitErr != nil {
			return waitErr
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := v.progress(); err != nil {
			return err
		}
	}
	return digester.check()
}

// manifests compares all manifests whose bytes are in their records with their
// digests.
func (v *verifier) manifests(ctx context.Context) error {
	return eachPage(func(after string) ([]string, bool, error) {
		return v.store.Repositories(ctx, after, verifyPage)
	}, func(repository string) error {
		return eachPage(func(after string) ([]string, bool, error) {
			return v.store.Manifests(ctx, repository, after, verifyPage)
		}, func(digest string) error { return v.manifest(ctx, repository, digest) })
	})
}

func (v *verifier) manifest(ctx context.Context, repository, digest string) error {
	manifest, err := v.store.Manifest(ctx, repository, digest)
	if errors.Is(err, metadata.ErrManifestUnknown) || errors.Is(err, metadata.ErrRepositoryUnknown) {
		return nil // deleted since it was listed
	}
	if err != nil {
		return err
	}
	v.so.Manifests++
	if manifest.GetStoredAsBlob() {
		return v.progress() // read as a blob
	}
	digester, err := newDigester(digest)
	if err == nil {
		digester.Write(manifest.GetContent())
		err = digester.check()
	}
	v.so.Bytes += uint64(len(manifest.GetContent()))
	if err == nil {
		return v.progress()
	}
	return v.found(VerifyFault{Kind: "manifest", Digest: digest, Repositories: []string{repository}, Error: err.Error()})
}

func (v *verifier) found(fault VerifyFault) error {
	v.so.Bad++
	one := v.so
	one.Found = &fault
	return v.tell(one)
}

// progress tells how far it is, now and then.
func (v *verifier) progress() error {
	if time.Since(v.told) < verifyTell {
		return nil
	}
	v.told = time.Now()
	return v.tell(v.so)
}

// eachPage calls visit for every name of a list.
func eachPage(list func(after string) (names []string, more bool, err error), visit func(name string) error) error {
	for after, more := "", true; more; {
		var names []string
		var err error
		if names, more, err = list(after); err != nil {
			return err
		}
		for _, name := range names {
			if err := visit(name); err != nil {
				return err
			}
			after = name
		}
	}
	return nil
}

// digester computes the digest of what is written to it.
type digester struct {
	hash.Hash
	algorithm, want string
}

func newDigester(digest string) (*digester, error) {
	algorithm, want, _ := strings.Cut(digest, ":")
	switch algorithm {
	case "sha256":
		return &digester{sha256.New(), algorithm, want}, nil
	case "sha512":
		return &digester{sha512.New(), algorithm, want}, nil
	}
	return nil, fmt.Errorf("digest %s is of an algorithm that this version of atoll does not know", digest)
}

// check fails if what was written has another digest.
func (d *digester) check() error {
	if got := hex.EncodeToString(d.Sum(nil)); got != d.want {
		return fmt.Errorf("its bytes have the digest %s:%s", d.algorithm, got)
	}
	return nil
}
