package bench

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// maxURLs bounds the nodes of a registry, and the files of a static server with MaxBlobs.
	maxURLs = 64
	// beforeTimeout bounds what is done before a turn.
	beforeTimeout = 10 * time.Minute
)

// Registry is what is measured: a registry, or a server of static files to compare it with.
type Registry struct {
	// Name is what reports call it.
	Name string
	// URLs are those of its nodes, asked in turns: scheme, host and port.
	URLs []string
	// Static are URLs of files of the size of a blob, read instead of blobs; nothing is pushed then.
	Static []string
	// Processes are ids of its processes, or files that have some; may be empty.
	Processes []string
	// Before is a command for sh, run before each of its turns; may be empty.
	Before string
	// BeforeTurn is called before each of its turns, after that command; may be nil. If it fails, so
	// does the run.
	BeforeTurn func(ctx context.Context) error
	// Tags are prepared for it instead of Config.Tags, unless that is 0.
	Tags int
	// User and Password are its login; may be empty.
	User, Password string
}

// validate returns all that is wrong.
func (r Registry) validate(workload Workload) error {
	var wrong []error
	fault := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if len(r.URLs) > 0 == (len(r.Static) > 0) {
		fault("it needs the URLs of its nodes, or those of static files")
	}
	if len(r.URLs) > maxURLs || len(r.Static) > MaxBlobs {
		fault("%d nodes and %d files are more than %d and %d", len(r.URLs), len(r.Static), maxURLs, MaxBlobs)
	}
	if len(r.Static) > 0 && !workload.pull {
		fault("static files can only be pulled, %s needs a registry", workload.Name)
	}
	if r.Tags < 0 || r.Tags > MaxTags {
		fault("tags: %d is not 0 to %d", r.Tags, MaxTags)
	}
	for _, text := range append(r.URLs[:len(r.URLs):len(r.URLs)], r.Static...) {
		parsed, err := url.Parse(text)
		if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" {
			fault("%q is not http://HOST:PORT or https://HOST:PORT", text)
		} else if len(r.URLs) > 0 && (strings.Trim(parsed.Path, "/") != "" || parsed.RawQuery != "" || parsed.User != nil) {
			fault("%q has more than scheme, host and port", text)
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return fmt.Errorf("registry %s: %w", r.Name, err)
	}
	return nil
}

// target is a registry that is being measured.
type target struct {
	Registry
	config *Config
	client *client
	// repository is where everything goes: a new one in each run, so that lists and
	// tags of a run do not go by what was there before.
	repository string
	content    *content
	// blobs are those of the size to be measured.
	blobs *family
	// made is how many blobs there are so far; next how many operations have begun, in all turns.
	made, next atomic.Uint64
	report     RegistryReport
}

// newTarget asks nothing of the registry but how to log in.
func newTarget(ctx context.Context, config *Config, registry Registry) (*target, error) {
	t := &target{Registry: registry, config: config, report: RegistryReport{Name: registry.Name, URLs: registry.URLs, Static: registry.Static}}
	var err error
	if t.content, err = newContent(); err != nil {
		return nil, err
	}
	if t.blobs, err = t.content.family(config.Size); err != nil {
		return nil, err
	}
	t.repository = config.Repository + "/" + hex.EncodeToString(t.content.nonce[:4])
	who := &login{user: registry.User, password: registry.Password}
	if t.client, err = newClient(config.Clients, config.TLS, who); err != nil {
		return nil, err
	}
	if len(t.URLs) == 0 {
		return t, nil
	}
	t.URLs = slices.Clone(t.URLs)
	for i, text := range t.URLs {
		t.URLs[i] = strings.TrimRight(text, "/")
	}
	if err := who.discover(ctx, t.client.http, t.URLs[0], t.repository); err != nil {
		return nil, fmt.Errorf("registry %s: %w", t.Name, err)
	}
	return t, nil
}

// base is the repository's URL on one node, all nodes in turn.
func (t *target) base(n uint64) string {
	return t.URLs[n%uint64(len(t.URLs))] + "/v2/" + t.repository
}

// pick says which of some things operation n is about, and its lap, how often all of
// them were picked before. The thing is asked of another node in each lap: see baseOf.
func pick(n uint64, things int) (thing int, lap uint64) {
	return int(n % uint64(things)), n / uint64(things)
}

// baseOf is the repository's URL on the node that is asked for a thing in a lap.
func (t *target) baseOf(thing int, lap uint64) string { return t.base(uint64(thing) + lap) }

// newBlob returns a blob that the registry does not have.
func (t *target) newBlob(f *family) (blob, error) { return f.blob(t.made.Add(1)) }

// runBefore does what is to be done before a turn.
func (t *target) runBefore(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beforeTimeout)
	defer cancel()
	if t.Before != "" {
		if err := t.runCommand(ctx); err != nil {
			return err
		}
	}
	if t.BeforeTurn != nil {
		return t.BeforeTurn(ctx)
	}
	return nil
}

// runCommand runs the command before a turn.
func (t *target) runCommand(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", t.Before)
	// What it leaves running must not keep this waiting.
	cmd.WaitDelay = time.Second
	out := &limitedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("command before a turn of %s: %w: %s", t.Name, err, bytes.TrimSpace(out.kept))
	}
	return nil
}

// limitedBuffer keeps the beginning of what a command prints.
type limitedBuffer struct{ kept []byte }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxFaultBytes-len(b.kept))]...)
	return len(p), nil
}
