package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

// scrubPoll is how often scrub --now looks how far the nodes are.
const scrubPoll = time.Second

func newScrubCommand() *cobra.Command {
	var data string
	var now, asJSON bool
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "show how far the nodes are with looking for rot, or have them look now",
		Long: `Every node reads all its shards again within scrub.period, and has those rebuilt
that are damaged or missing. With --now all nodes do so at once, as fast as
scrub.bytes-per-second allows, and this command waits for them; it fails if they
found something, or if a node did not answer. DIR is a node's data folder, or the
folder of dev; any node of the cluster will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			scrubs, err := scrub(cmd.Context(), data, now)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), scrubs)
			} else {
				err = printScrubs(cmd.OutOrStdout(), scrubs)
			}
			if now {
				err = errors.Join(err, verdictOf(scrubs))
			}
			return err
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&now, "now", false, "have all nodes read all their shards now, and wait for them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// scrub asks the nodes, and with now has them begin and waits until they are done.
func scrub(ctx context.Context, data string, now bool) ([]node.Scrub, error) {
	fetch := func(folder string) ([]node.Scrub, error) { return node.FetchScrub(ctx, folder) }
	if !now {
		return askNode(data, fetch)
	}
	scrubs, err := askNode(data, func(folder string) ([]node.Scrub, error) { return node.StartScrub(ctx, folder) })
	if err != nil {
		return nil, err
	}
	ticker := time.NewTicker(scrubPoll)
	defer ticker.Stop()
	for isScrubbing(scrubs) {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("stopped waiting, the scrub goes on: %w", ctx.Err())
		case <-ticker.C:
		}
		if scrubs, err = askNode(data, fetch); err != nil {
			return nil, err
		}
	}
	return scrubs, nil
}

func isScrubbing(scrubs []node.Scrub) bool {
	for _, s := range scrubs {
		if s.Running {
			return true
		}
	}
	return false
}

// verdictOf is the error of a scrub that found something, or could not look.
func verdictOf(scrubs []node.Scrub) error {
	var found uint64
	var silent []error
	for _, s := range scrubs {
		if s.Error != "" {
			silent = append(silent, fmt.Errorf("node %s was not scrubbed: %s", s.Node, s.Error))
		}
		if s.Last != nil {
			found += s.Last.Damaged + s.Last.Missing
		}
	}
	if found > 0 {
		silent = append(silent, fmt.Errorf("%d shards were damaged or missing: they are being rebuilt, see 'atoll status'", found))
	}
	return errors.Join(silent...)
}

// printScrubs is the form for people.
func printScrubs(w io.Writer, scrubs []node.Scrub) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tSCRUB\tSHARDS\tBYTES\tDAMAGED\tMISSING\tLAST ENDED")
	for _, s := range scrubs {
		if s.Error != "" {
			fmt.Fprintf(table, "%s\tno answer\t\t\t\t\t%s\n", s.Node, s.Error)
			continue
		}
		state, pass, ended := "idle", s.Last, "never"
		if s.Running {
			state, pass = fmt.Sprintf("%.1f %%", s.DonePercent), s.Current
		}
		if s.Last != nil && s.Last.Ended != nil {
			ended = s.Last.Ended.Local().Format(time.DateTime)
		}
		if pass == nil {
			pass = &node.ScrubPass{}
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%d\t%d\t%s\n", s.Node, state, pass.Shards, binaryBytes(pass.Bytes), pass.Damaged, pass.Missing, ended)
	}
	return table.Flush()
}
