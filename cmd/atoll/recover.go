package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newRecoverCommand() *cobra.Command {
	var rejoin, yes bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "go on with what one node has, after most voters were lost for good",
		Long: `Make a new cluster of what one node has, after most of the voters were lost for
good, disks included. If most voters can be started with their data, start them:
then nothing is to be recovered, and nothing is lost.

All nodes must be stopped. The command is run on each of them that has its data, and
takes the settings of serve, by flags, environment or file. Without --yes it changes
nothing, and says what this node has. Choose the node with the highest term, among
those the one with the highest log index. Run it there with --yes, start that node,
then run it with --rejoin on the others, and start them: they bring their shards. A
node of the cluster as it was that is just started is refused.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd.Flags(), os.Environ())
			if err != nil {
				return err
			}
			recovery, err := node.OpenRecovery(cfg, rejoin, newLogger(cfg.Log, cmd.ErrOrStderr()))
			if err != nil {
				return fmt.Errorf("recover: %w", err)
			}
			err = recoverNode(cmd.Context(), cmd.OutOrStdout(), recovery, rejoin, yes)
			return errors.Join(err, recovery.Close())
		},
	}
	addSettingFlags(cmd.Flags())
	cmd.Flags().BoolVar(&rejoin, "rejoin", false, "bring this node, with its shards, into the cluster that was recovered on another")
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

// recoverNode says what there is to say, and then does what was asked for, if it was.
func recoverNode(ctx context.Context, w io.Writer, recovery *node.Recovery, rejoin, yes bool) error {
	survey, err := recovery.Survey(ctx, rejoin)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	printSurvey(w, survey)
	if refusal := survey.Refusal(); refusal != nil {
		return refusal
	}
	if rejoin {
		fmt.Fprintf(w, rejoinMeaning, survey.Recovered.ID, survey.Recovered.Node, survey.Recovered.LastTerm, survey.Recovered.LastIndex)
	} else {
		fmt.Fprint(w, recoverMeaning)
	}
	if !yes {
		fmt.Fprintln(w, "Nothing was changed. To do it, run the command again with --yes.")
		return nil
	}
	done := func(step string) { fmt.Fprintln(w, "done:", step) }
	if rejoin {
		if err := recovery.Rejoin(survey.Recovered.ID, done); err != nil {
			return fmt.Errorf("rejoin: %w: run the command again", err)
		}
		fmt.Fprint(w, rejoinNext)
		return nil
	}
	id, err := recovery.Recover(done)
	if err != nil {
		return fmt.Errorf("recover: %w: run the command again", err)
	}
	fmt.Fprintf(w, recoverNext, id)
	return nil
}

const (
	recoverMeaning = `
This makes a new cluster of what this node has, in which it is the only one that votes.
- Acknowledged pushes, tags and deletions that this node has not are lost for good. Run this command on every node that is left:
  the one with the highest term has the most, among those of one term the one with the highest log index. Recover that one, and no other.
- No other node of the cluster may run, or be started again as it is. Those that have their data come back by 'atoll recover --rejoin'.
- Make a copy of this node's data folder first, if there is room for one.
`
	recoverNext = `
This node belongs to cluster %s now. What is next:
1. start it: 'atoll serve', as ever
2. on every other node that has its data: 'atoll recover --rejoin', then start it
3. replace or remove the nodes that are lost: 'atoll status' and 'atoll verify' say what can't be read without them
`
	rejoinMeaning = `
This brings the node into cluster %s, which node %s belongs to, and which went on from term %d, log index %d.
The node keeps its name, its id and its shards. Its log and state are moved aside.
`
	rejoinNext = `
Start this node now: 'atoll serve', as ever. The log and state that were moved aside can be deleted once the cluster is healthy.
`
)

// printSurvey is the form for people.
func printSurvey(w io.Writer, s *node.Survey) {
	fmt.Fprintf(w, "node     %s, %s, of cluster %s\n", s.Node, s.ID, s.Cluster)
	if s.Fault != "" {
		fmt.Fprintf(w, "fault    %s\n", s.Fault)
	} else {
		fmt.Fprintf(w, "has      term %d, log index %d%s\n", s.LastTerm, s.LastIndex, appended(s.Appended))
		fmt.Fprintf(w, "applied  log index %d\n", s.AppliedIndex)
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "warning  %s\n", warning)
	}
	if len(s.Nodes) == 0 {
		return
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NODE\tROLE\tCLUSTER\tNOW")
	for _, n := range s.Nodes {
		role := "non-voter"
		if n.Voter {
			role = "voter"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", n.Name, role, n.Address, n.Answer)
	}
	_ = table.Flush() // as with all that is written for people
}

func appended(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return ", written " + at.Local().Format(time.DateTime)
}
