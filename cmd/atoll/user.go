package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newUserCommand() *cobra.Command {
	return newGroupCommand("user", "add people who can log in, and change or remove them",
		`Users are people who log in with a password. What they may do is the policy's to
say: see 'atoll policy'. DIR is a node's data folder, or the folder of dev; any node
of the cluster will do.`,
		newUserAddCommand(), newUserPasswordCommand(), newAccountListCommand(node.KindUser), newAccountGroupsCommand(node.KindUser),
		newAccountEnableCommand(node.KindUser, true), newAccountEnableCommand(node.KindUser, false), newAccountRemoveCommand(node.KindUser),
	)
}

func newUserAddCommand() *cobra.Command {
	var data, description string
	var groups []string
	var passwordStdin, asJSON bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a user",
		Long: `Add a user. The password is made and shown once, or read with --password-stdin:
it is no argument, since every user of this machine can see those.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			made := node.NewAccount{Name: args[0], Kind: node.KindUser, Groups: groups, Description: description}
			var err error
			if made.Password, err = readPassword(cmd.InOrStdin(), passwordStdin); err != nil {
				return err
			}
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.CreateAccount(cmd.Context(), folder, made)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printAnswer(cmd, "is added, "+inGroups(answer.Account.Groups), answer)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringSliceVar(&groups, "group", nil, "a group that the user is in; may be given several times")
	cmd.Flags().StringVar(&description, "description", "", "for people: who this is")
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newUserPasswordCommand() *cobra.Command {
	var data string
	var passwordStdin, asJSON bool
	cmd := &cobra.Command{
		Use:   "passwd NAME",
		Short: "give a user another password",
		Long: `Give a user another password: one that is made and shown once, or the one that is
read with --password-stdin. What was logged in with the old one ends at once, on
every node.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			password, err := readPassword(cmd.InOrStdin(), passwordStdin)
			if err != nil {
				return err
			}
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.ChangeAccount(cmd.Context(), folder, args[0], node.AccountChange{Kind: node.KindUser, Password: &password})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printAnswer(cmd, "has another password, and what was logged in has ended", answer)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// maxPasswordInput bounds what is read as a password. How long one may be, the node
// says.
const maxPasswordInput = 4 << 10

// readPassword reads a password up to its end, without the line break that echo adds;
// empty if none is wanted, for one that is made.
func readPassword(from io.Reader, wanted bool) (node.Secret, error) {
	if !wanted {
		return "", nil
	}
	text, err := io.ReadAll(io.LimitReader(from, maxPasswordInput))
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if password == "" {
		return "", errors.New("standard input has no password: leave --password-stdin away to have one made")
	}
	return node.Secret(password), nil
}
