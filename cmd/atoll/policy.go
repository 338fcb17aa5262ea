package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newPolicyCommand() *cobra.Command {
	return newGroupCommand("policy", "show, change and explain who may do what",
		`The policy says who may do what in which repositories, and which tags stay where
they are. docs/access.md tells how it is written. DIR is a node's data folder, or the
folder of dev; any node of the cluster will do.`,
		newPolicyShowCommand(), newPolicySetCommand(), newPolicyCheckCommand(),
	)
}

func newPolicyShowCommand() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "print the policy as it was written",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			current, err := askNode(data, func(folder string) (*node.Policy, error) {
				return node.FetchPolicy(cmd.Context(), folder)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), current)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), current.Text)
			return err
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the revision")
	return cmd
}

// maxPolicyInput bounds what is read as a policy. How long one may be, the node says.
const maxPolicyInput = 512 << 10

func newPolicySetCommand() *cobra.Command {
	var data string
	var dryRun, asJSON bool
	var revision uint64
	cmd := &cobra.Command{
		Use:   "set FILE",
		Short: "put the policy in a file in the place of the present one",
		Long: `Read a policy from a file, or from standard input for "-", check it, show what it
changes, and put it in the place of the present one. It counts from the next request
on, on every node. 'atoll policy show' prints what to begin with.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readPolicy(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			next := node.NewPolicy{Text: text, DryRun: dryRun}
			if cmd.Flags().Changed("revision") {
				next.Revision = &revision
			}
			change, err := askNode(data, func(folder string) (*node.PolicyChange, error) {
				return node.SetPolicy(cmd.Context(), folder, next)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), change)
			}
			return printPolicyChange(cmd.OutOrStdout(), change, dryRun)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing")
	cmd.Flags().Uint64Var(&revision, "revision", 0, "fail if the policy is at another revision by now (see 'atoll policy show --json')")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// readPolicy reads a file, or standard input for "-".
func readPolicy(stdin io.Reader, path string) (string, error) {
	from := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read policy: %w", err)
		}
		defer file.Close()
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, maxPolicyInput))
	if err != nil {
		return "", fmt.Errorf("read policy: %w", err)
	}
	return string(text), nil
}

// printPolicyChange is the form for people.
func printPolicyChange(w io.Writer, change *node.PolicyChange, dryRun bool) error {
	fmt.Fprint(w, change.Diff)
	for _, warning := range change.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	verdict := fmt.Sprintf("the policy is at revision %d", change.Revision)
	switch {
	case dryRun && change.Diff == "":
		verdict = "dry run: it would mean the same as the present one"
	case dryRun:
		verdict = "dry run: nothing was changed"
	case !change.Changed:
		verdict = fmt.Sprintf("this is the policy already, at revision %d", change.Revision)
	case change.Diff == "":
		verdict += ", and means the same as before"
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}

func newPolicyCheckCommand() *cobra.Command {
	var data string
	var groups []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check SUBJECT REPOSITORY",
		Short: "show what somebody may do in a repository, and by which rules",
		Long: `SUBJECT is user:NAME, robot:NAME or anonymous. The groups are those of the account of
this name, and those of --group: for somebody who logs in by other means, such as
another issuer's token.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			check, err := askNode(data, func(folder string) (*node.PolicyCheck, error) {
				return node.CheckPolicy(cmd.Context(), folder, args[0], args[1], groups)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), check)
			}
			return printPolicyCheck(cmd.OutOrStdout(), check)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringSliceVar(&groups, "group", nil, "a group besides those of the account; may be given several times")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printPolicyCheck is the form for people.
func printPolicyCheck(w io.Writer, check *node.PolicyCheck) error {
	who := check.Subject
	switch {
	case len(check.Groups) > 0:
		who += ", " + inGroups(check.Groups) + ","
	case check.Account == "" && check.Subject != "anonymous":
		who += ", who has no account,"
	}
	fmt.Fprintf(w, "%s may do in %s: %s\n", who, check.Repository, check.Rights)
	if check.Account == "disabled" {
		fmt.Fprintf(w, "but the account is disabled: 'atoll %s'\n", strings.Replace(check.Subject, ":", " enable ", 1))
	}
	if len(check.Grants) == 0 {
		_, err := fmt.Fprintln(w, "no rule gives anything: what no rule gives, nobody has")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "RULE\tSUBJECT\tREPOSITORIES\tGIVES")
	for _, g := range check.Grants {
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\n", g.Rule, g.Subject, g.Repositories, g.Rights)
	}
	return table.Flush()
}
