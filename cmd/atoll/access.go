package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

// What the commands for users, robots and the policy have in common.

// newGroupCommand is a command that only has others.
func newGroupCommand(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: cobra.ArbitraryArgs, // an unknown command comes as one
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			var names []string
			for _, command := range cmd.Commands() {
				names = append(names, command.Name())
			}
			return unknown(use+" command", args[0], names)
		},
	}
	group.AddCommand(commands...)
	return group
}

// lifetime is a flag for how long something counts: a duration, or days as in 90d.
type lifetime time.Duration

// String returns the time as it may be given.
func (l *lifetime) String() string {
	if day := 24 * time.Hour; time.Duration(*l)%day == 0 && *l != 0 {
		return fmt.Sprintf("%dd", time.Duration(*l)/day)
	}
	return time.Duration(*l).String()
}

// Set reads the time.
func (l *lifetime) Set(text string) error {
	if count, isDays := strings.CutSuffix(text, "d"); isDays {
		days, err := strconv.ParseUint(count, 10, 16)
		if err != nil {
			return errors.New("a time is a number of days like 90d, or a duration like 12h")
		}
		*l = lifetime(time.Duration(days) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return errors.New("a time is a number of days like 90d, or a duration like 12h")
	}
	*l = lifetime(d)
	return nil
}

// Type names the flag's kind in help texts.
func (*lifetime) Type() string { return "time" }

// printAnswer tells what has become of an account. A password or secret that was made
// is alone on a line of the standard output, so that it can be piped; words about it go
// beside it.
func printAnswer(cmd *cobra.Command, done string, answer *node.AccountAnswer) error {
	words := cmd.OutOrStdout()
	if answer.Secret != "" {
		words = cmd.ErrOrStderr()
	}
	fmt.Fprintf(words, "%s %s %s\n", answer.Account.Kind, answer.Account.Name, done)
	for _, warning := range answer.Warnings {
		fmt.Fprintf(words, "warning: %s\n", warning)
	}
	if answer.Secret == "" {
		return nil
	}
	word := "password"
	if answer.Account.Kind == node.KindRobot {
		word = "secret"
	}
	fmt.Fprintf(words, "this is its %s, which is not shown again:\n", word)
	_, err := fmt.Fprintln(cmd.OutOrStdout(), string(answer.Secret))
	return err
}

// inGroups says which groups an account is in.
func inGroups(groups []string) string {
	switch len(groups) {
	case 0:
		return "in no group"
	case 1:
		return "in the group " + groups[0]
	default:
		return "in the groups " + strings.Join(groups, ", ")
	}
}

// printAccounts is the form for people.
func printAccounts(w io.Writer, kind string, accounts []node.Account) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	secrets := func(text string) string {
		if kind == node.KindRobot {
			return text + "\t"
		}
		return ""
	}
	fmt.Fprintln(table, "NAME\tSTATE\tGROUPS\tCREATED\t"+secrets("SECRETS")+"DESCRIPTION")
	for _, a := range accounts {
		state := "enabled"
		if a.Disabled {
			state = "disabled"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s%s\n", a.Name, state, dash(strings.Join(a.Groups, ",")),
			a.Created.Local().Format(time.DateOnly), secrets(dash(secretsOf(a))), oneLine(a.Description))
	}
	return table.Flush()
}

// secretsOf lists a robot's secrets and when each ends.
func secretsOf(a node.Account) string {
	var secrets []string
	for _, s := range a.Secrets {
		switch {
		case s.Expired:
			secrets = append(secrets, s.ID+" (expired)")
		case s.Expires != nil:
			secrets = append(secrets, s.ID+" (until "+s.Expires.Local().Format(time.DateTime)+")")
		default:
			secrets = append(secrets, s.ID)
		}
	}
	return strings.Join(secrets, ", ")
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// newAccountListCommand lists the accounts of a kind.
func newAccountListCommand(kind string) *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "show all " + kind + "s",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			accounts, err := askNode(data, func(folder string) ([]node.Account, error) {
				return node.FetchAccounts(cmd.Context(), folder, kind)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), accounts)
			}
			return printAccounts(cmd.OutOrStdout(), kind, accounts)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newAccountEnableCommand enables or disables accounts of a kind.
func newAccountEnableCommand(kind string, disabled bool) *cobra.Command {
	use, done := "enable", "can log in again"
	short, long := "let a "+kind+" log in again", ""
	if disabled {
		use, done = "disable", "can't log in any more, and what was logged in has ended"
		short = "keep a " + kind + " from logging in, at once and until it is enabled"
		long = "What was logged in with the account ends at once, on every node."
	}
	var data string
	cmd := &cobra.Command{
		Use:   use + " NAME",
		Short: short,
		Long:  long,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.ChangeAccount(cmd.Context(), folder, args[0], node.AccountChange{Kind: kind, Disabled: &disabled})
			})
			if err != nil {
				return err
			}
			return printAnswer(cmd, done, answer)
		},
	}
	addDataFlag(cmd, &data)
	return cmd
}

// newAccountGroupsCommand shows or changes in which groups an account is.
func newAccountGroupsCommand(kind string) *cobra.Command {
	var data string
	var added, removed []string
	cmd := &cobra.Command{
		Use:   "groups NAME",
		Short: "show, add or remove the groups that a " + kind + " is in",
		Long: `Groups are what rules of the policy are for. They need not be made: a group is
there once somebody is in it. A change counts from the next request on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change := node.AccountChange{Kind: kind, AddGroups: added, RemoveGroups: removed}
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				if len(added)+len(removed) > 0 {
					return node.ChangeAccount(cmd.Context(), folder, args[0], change)
				}
				account, err := node.FetchAccount(cmd.Context(), folder, kind, args[0])
				return &node.AccountAnswer{Account: account}, err
			})
			if err != nil {
				return err
			}
			return printAnswer(cmd, "is "+inGroups(answer.Account.Groups), answer)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringSliceVar(&added, "add", nil, "a group that it is to be in")
	cmd.Flags().StringSliceVar(&removed, "remove", nil, "a group that it is not to be in any more")
	return cmd
}

// newAccountRemoveCommand removes accounts of a kind.
func newAccountRemoveCommand(kind string) *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a " + kind,
		Long: `What was logged in with the account ends at once, on every node. What it has pushed
stays. Somebody else may get the name later: rules of the policy that name it are then
for that one.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.RemoveAccount(cmd.Context(), folder, kind, args[0])
			})
			if err != nil {
				return err
			}
			return printAnswer(cmd, "is removed", answer)
		},
	}
	addDataFlag(cmd, &data)
	return cmd
}
