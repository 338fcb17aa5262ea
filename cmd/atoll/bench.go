package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/cmd/bench"
)

// benchFlags are what bench and bench compare have in common.
type benchFlags struct {
	config             bench.Config
	size, chunk, ca    string
	user, passwordFile string
	before             string
	maxErrorRate       float64
	asJSON             bool
}

const benchLong = `Measure a registry, this or another, by doing the same operation over and over again:

%s
Blobs and tags that are needed are pushed first, into a new repository below --repository,
and what was pushed stays: take a registry, or a repository, that can be thrown away. The
nodes of --url are asked in turns; all requests of one push go to one node. A turn begins
operations for --duration; those that have begun are finished, and count with the time that
they take. p50, p99 and max are exact. Operations that fail count as errors only, and the
command fails if they are more than --max-error-rate of all. A GB is 10^9 bytes.`

func newBenchCommand() *cobra.Command {
	var flags benchFlags
	var registry bench.Registry
	cmd := &cobra.Command{
		Use:   "bench WORKLOAD",
		Short: "measure how fast a registry is, and what that costs",
		Long:  fmt.Sprintf(benchLong, benchWorkloads()),
		Example: `  atoll bench pull --url http://127.0.0.1:5001 --url http://127.0.0.1:5002 --size 64MiB --clients 8
  atoll bench push-stream --url http://127.0.0.1:5000 --size 1GiB --clients 1 --pids 4711,4712,4713
  atoll bench pull --cold --before 'sync; echo 3 > /proc/sys/vm/drop_caches' --url http://127.0.0.1:5000`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// It is called by where its first node is.
			_, registry.Name, _ = strings.Cut(append(registry.URLs, registry.Static...)[0], "://")
			flags.config.Registries = []bench.Registry{registry}
			return flags.run(cmd, args[0])
		},
	}
	flags.add(cmd, 1)
	cmd.Flags().StringSliceVar(&registry.URLs, "url", nil, "URL of a node of the registry, http://HOST:PORT or https://HOST:PORT; may be given several times")
	cmd.Flags().StringSliceVar(&registry.Static, "static", nil, "URL of a file of --size bytes, for pulls, instead of a registry; may be given several times")
	cmd.Flags().StringSliceVar(&registry.Processes, "pids", nil, "ids of the registry's processes, or files with some, whose CPU time and memory to measure; on Linux, if they run here")
	cmd.MarkFlagsOneRequired("url", "static")
	cmd.AddCommand(newBenchCompareCommand())
	return cmd
}

func newBenchCompareCommand() *cobra.Command {
	var flags benchFlags
	var registries, static []string
	var file string
	cmd := &cobra.Command{
		Use:   "compare WORKLOAD",
		Short: "measure two registries or more in turns, and print ratios",
		Long: `Measure two registries or more in turns (A B A B), so that what changes with time on this
machine meets all alike. For each number the median of the turns is printed, and what it is
of the first registry's, with the least and the most of that in a turn. The workloads are
those of 'atoll bench'. A file says more of registries than flags can:

  - name: atoll
    urls: [http://127.0.0.1:5001, http://127.0.0.1:5002, http://127.0.0.1:5003]
    pids: [4711, 4712, 4713]       # or files with process ids, read before each turn
    before: ./drop-caches atoll    # run by sh before each of its turns
    user: alice
    password-file: alice.password
  - name: nginx
    static: [http://127.0.0.1:8080/file]   # files of --size bytes, for pulls
    pids: [/run/nginx.pid]`,
		Example: `  atoll bench compare pull --registry atoll=http://127.0.0.1:5001,http://127.0.0.1:5002 --registry other=http://127.0.0.1:6000
  atoll bench compare push-put --size 64MiB --registries registries.yaml --turns 5 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if flags.config.Registries, err = benchRegistries(registries, static, file); err != nil {
				return err
			}
			if len(flags.config.Registries) < 2 {
				return errors.New("two registries at least are compared")
			}
			return flags.run(cmd, args[0])
		},
	}
	flags.add(cmd, 3)
	cmd.Flags().StringArrayVar(&registries, "registry", nil, "NAME=URL,... of a registry's nodes; to be given once for each")
	cmd.Flags().StringArrayVar(&static, "static", nil, "NAME=URL,... of files of --size bytes, for pulls; they come after the registries")
	cmd.Flags().StringVar(&file, "registries", "", "YAML file with the registries")
	cmd.MarkFlagsOneRequired("registry", "registries")
	cmd.MarkFlagsMutuallyExclusive("registry", "registries")
	cmd.MarkFlagsMutuallyExclusive("static", "registries")
	return cmd
}

// benchWorkloads is the list for people.
func benchWorkloads() string {
	var list strings.Builder
	for _, w := range bench.Workloads() {
		fmt.Fprintf(&list, "  %-13s %s\n", w.Name, w.Summary)
	}
	return list.String()
}

// add adds the flags to a command.
func (f *benchFlags) add(cmd *cobra.Command, turns int) {
	flags, c := cmd.Flags(), &f.config
	flags.StringVar(&f.size, "size", "1MiB", "size of a blob, 1KiB to 16GiB")
	flags.StringVar(&f.chunk, "chunk", "256KiB", "size of a chunk of push-chunked and of a range of pull-range")
	flags.IntVar(&c.Clients, "clients", 4, fmt.Sprintf("how many operations run at once, up to %d", bench.MaxClients))
	flags.DurationVar(&c.Duration, "duration", 10*time.Second, "how long a turn begins operations")
	flags.IntVar(&c.Count, "count", bench.MaxOperations, "how many operations end a turn before that")
	flags.DurationVar(&c.WarmUp, "warm-up", time.Second, "how long operations run before each turn that don't count")
	flags.DurationVar(&c.Timeout, "timeout", 5*time.Minute, "how long one operation may take before it has failed")
	flags.IntVar(&c.Turns, "turns", turns, "how many turns each registry gets")
	flags.IntVar(&c.Blobs, "blobs", 8, "how many blobs to push for pulls, which read one after the other")
	flags.IntVar(&c.Tags, "tags", 100, "how many tags to read, list or move")
	flags.BoolVar(&c.Cold, "cold", false, "pulls read each blob once a turn, without warm-up, after the command of --before has emptied the caches")
	flags.BoolVar(&c.Verify, "verify", false, "compare what is pulled with what was pushed, which costs the client some CPU time")
	flags.StringVar(&f.before, "before", "", "command that sh runs before each turn")
	flags.StringVar(&c.Repository, "repository", "bench", "what the name of the new repository begins with")
	flags.StringVar(&f.user, "user", "", "user to log in as, where the registry wants that")
	flags.StringVar(&f.passwordFile, "password-file", "", "file with the user's password")
	flags.StringVar(&f.ca, "ca", "", "file with the authorities that sign the registry's certificate (default: those of the system)")
	flags.BoolVar(&c.TLS.Insecure, "insecure", false, "accept any certificate")
	flags.Float64Var(&f.maxErrorRate, "max-error-rate", 0, "share of operations that may fail, 0 to 1")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("ca", "insecure")
}

// run measures, prints, and fails if too much did.
func (f *benchFlags) run(cmd *cobra.Command, workload string) error {
	if err := f.complete(workload); err != nil {
		return err
	}
	if !f.asJSON {
		f.config.Progress = progressTo(cmd.ErrOrStderr(), f.config.Turns)
	}
	return f.measure(cmd.Context(), cmd.OutOrStdout())
}

// complete turns the text of flags into what it means.
func (f *benchFlags) complete(workload string) (err error) {
	var names []string
	for _, w := range bench.Workloads() {
		names = append(names, w.Name)
		if w.Name == workload {
			f.config.Workload = workload
		}
	}
	if f.config.Workload == "" {
		return unknown("workload", workload, names)
	}
	for _, size := range []struct {
		flag, text string
		bytes      *int64
	}{{"size", f.size, &f.config.Size}, {"chunk", f.chunk, &f.config.Chunk}} {
		if *size.bytes, err = bytesOf(size.text); err != nil {
			return fmt.Errorf("--%s: %q is not %s", size.flag, size.text, kindBytes.allowed())
		}
	}
	if f.maxErrorRate < 0 || f.maxErrorRate > 1 {
		return fmt.Errorf("--max-error-rate: %v is not 0 to 1", f.maxErrorRate)
	}
	if f.ca != "" {
		if f.config.TLS.CA, err = os.ReadFile(f.ca); err != nil {
			return fmt.Errorf("--ca: %w", err)
		}
	}
	password, err := benchPassword(f.passwordFile)
	if err != nil {
		return err
	}
	for i := range f.config.Registries {
		registry := &f.config.Registries[i]
		if registry.User == "" {
			registry.User, registry.Password = f.user, password
		}
		if registry.Before == "" {
			registry.Before = f.before
		}
	}
	return nil
}

// maxPasswordFile bounds what is read as a password.
const maxPasswordFile = 64 << 10

// benchPassword reads a file; the line's end is no part of the password.
func benchPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxPasswordFile))
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimRight(string(content), "\r\n"), nil
}

// measure does the run, prints it, and fails if too much did.
func (f *benchFlags) measure(ctx context.Context, w io.Writer) error {
	report, err := bench.Run(ctx, f.config)
	if err != nil {
		return err
	}
	if f.asJSON {
		err = printJSON(w, report)
	} else {
		err = printBench(w, report)
	}
	if err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	done, failed := report.Counts()
	switch rate := float64(failed) / float64(max(done+failed, 1)); {
	case rate > f.maxErrorRate:
		return fmt.Errorf("%d of %d operations failed", failed, done+failed)
	case done == 0:
		return errors.New("no operation was done")
	}
	return nil
}
