// Package bench measures registries from outside, through the OCI distribution protocol,
// and what their processes cost meanwhile. It knows nothing of atoll.
//
// A run is a workload against one registry or more. Blobs and tags that it needs are
// pushed first. Then come turns, one registry after the other and again (A B A B), so
// that what changes with time on a machine meets all of them alike. In a turn a number
// of clients do operations, one after the other each, until its time is up; operations
// that have begun by then are finished, and count, and so does the time that they take.
//
// The client shares a machine with what it measures more often than not, and so it must
// be cheap: content is copied out of a few MiB of memory (see content), its digests cost
// nothing in measured time, and what comes is thrown away.
package bench

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Bounds of what may be asked for.
const (
	MinSize       = 1 << 10
	MaxSize       = 16 << 30
	MaxClients    = 1024
	MaxTurns      = 1000
	MaxDuration   = 24 * time.Hour
	MaxTags       = 100_000
	MaxBlobs      = 10_000
	MaxRegistries = 16
	// MaxOperations is how many a turn has at most, since the time of each is kept (8 bytes).
	MaxOperations = 5_000_000
	// maxPatches bounds the requests of one push.
	maxPatches = 100_000
)

// Config is one run.
type Config struct {
	// Workload is the name of one.
	Workload   string
	Registries []Registry
	// Size is that of a blob; Chunk that of one PATCH or range. Bytes.
	Size, Chunk int64
	// Clients is how many operations run at once.
	Clients int
	// Duration is how long a turn begins operations, and Count how many at most.
	Duration time.Duration
	Count    int
	// WarmUp is how long operations run before each turn that don't count.
	WarmUp time.Duration
	// Timeout is how long one operation may take before it has failed.
	Timeout time.Duration
	// Turns is how many each registry gets.
	Turns int
	// Blobs and Tags are how many are prepared for workloads that read or move them.
	Blobs, Tags int
	// Cold reads each blob once a turn, without warm-up. Registries need a command before
	// turns then, which empties caches: what was pushed just now is in some.
	Cold bool
	// Verify compares all that is pulled with what was pushed.
	Verify bool
	// Repository is what the name of the run's own repository begins with.
	Repository string
	TLS        TLS
	// Progress is told of each turn when it is over, unless it is nil.
	Progress func(registry string, number int, turn Turn)
}

// TLS says whom to trust.
type TLS struct {
	// CA is the PEM of authorities; empty for those of the system.
	CA []byte
	// Insecure trusts everybody.
	Insecure bool
}

// procFolder is where Linux tells of processes.
const procFolder = "/proc"

// repositoryForm is that of the distribution specification.
var repositoryForm = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// validate returns all that is wrong.
func (c *Config) validate(workload Workload) error {
	var wrong []error
	within := func(what string, value, least, most int64) {
		if value < least || value > most {
			wrong = append(wrong, fmt.Errorf("%s: %d is not %d to %d", what, value, least, most))
		}
	}
	need := func(condition bool, text string) {
		if !condition {
			wrong = append(wrong, errors.New(text))
		}
	}
	within("size", c.Size, MinSize, MaxSize)
	if workload.chunks {
		within("chunk", c.Chunk, 1, c.Size)
		need(workload.pull || c.Chunk*maxPatches >= c.Size, fmt.Sprintf("chunk: a blob would need more than %d requests", maxPatches))
	}
	within("clients", int64(c.Clients), 1, MaxClients)
	within("turns", int64(c.Turns), 1, MaxTurns)
	within("blobs", int64(c.Blobs), 1, MaxBlobs)
	within("tags", int64(c.Tags), 1, MaxTags)
	within("count", int64(c.Count), 1, MaxOperations)
	need(c.Duration > 0 && c.Duration <= MaxDuration && c.WarmUp >= 0 && c.WarmUp <= MaxDuration, fmt.Sprintf("a turn lasts up to %s, and so does a warm-up", MaxDuration))
	need(c.Timeout > 0 && c.Timeout <= MaxDuration, fmt.Sprintf("timeout: it can be up to %s", MaxDuration))
	need(len(c.Repository) <= 200 && repositoryForm.MatchString(c.Repository), fmt.Sprintf("repository: %q is not a repository's name", c.Repository))
	need(!c.Cold || workload.cold, fmt.Sprintf("%s can't be cold", workload.Name))
	need(!c.Verify || workload.pull, fmt.Sprintf("%s pulls nothing that could be verified", workload.Name))
	within("registries", int64(len(c.Registries)), 1, MaxRegistries)
	names := map[string]bool{}
	for _, registry := range c.Registries {
		need(registry.Name != "" && !names[registry.Name], fmt.Sprintf("registry %q: each needs a name of its own", registry.Name))
		names[registry.Name] = true
		need(!c.Cold || registry.Before != "" || registry.BeforeTurn != nil, fmt.Sprintf("registry %s: to be cold it needs a command that empties caches before its turns", registry.Name))
		need(!c.Verify || len(registry.Static) == 0, fmt.Sprintf("registry %s: what static files have in them is not known, they can't be verified", registry.Name))
		wrong = append(wrong, registry.validate(workload))
	}
	return errors.Join(wrong...)
}

// Run does a run. It fails if something is wrong with the configuration, with what comes
// before turns, or with ctx; operations that fail are in the report.
func Run(ctx context.Context, config Config) (*Report, error) {
	workload, err := find(config.Workload)
	if err != nil {
		return nil, err
	}
	if err := config.validate(workload); err != nil {
		return nil, err
	}
	var targets []*target
	var works []work
	for _, registry := range config.Registries {
		t, err := newTarget(ctx, &config, registry)
		if err != nil {
			return nil, err
		}
		defer t.client.http.CloseIdleConnections()
		w := workload.work(t)
		if w.prepare != nil {
			if err := w.prepare(ctx); err != nil {
				return nil, fmt.Errorf("prepare registry %s: %w", t.Name, err)
			}
		}
		targets, works = append(targets, t), append(works, w)
	}
	for number := range config.Turns {
		for i, t := range targets {
			turn, err := t.turn(ctx, works[i])
			if err != nil {
				return nil, fmt.Errorf("turn %d of registry %s: %w", number+1, t.Name, err)
			}
			t.report.Turns = append(t.report.Turns, turn)
			if config.Progress != nil {
				config.Progress(t.Name, number+1, turn)
			}
		}
	}
	return newReport(&config, workload, targets), nil
}

// newReport puts together what the targets have.
func newReport(config *Config, workload Workload, targets []*target) *Report {
	report := &Report{
		Workload: workload.Name, Clients: config.Clients, Cold: config.Cold,
		DurationSeconds: config.Duration.Seconds(), WarmUpSeconds: config.WarmUp.Seconds(),
	}
	if workload.Bulk {
		report.Size = config.Size
	}
	if workload.chunks {
		report.Chunk = config.Chunk
	}
	for _, t := range targets {
		report.Registries = append(report.Registries, t.report)
	}
	report.summarize()
	return report
}
