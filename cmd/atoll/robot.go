package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newRobotCommand() *cobra.Command {
	return newGroupCommand("robot", "make names and secrets for programs, and change or remove them",
		`Robots are programs that log in with a secret that atoll makes, such as pipelines.
They may do what a rule of the policy gives to them or to one of their groups, and
nothing besides: see 'atoll policy'. DIR is a node's data folder, or the folder of
dev; any node of the cluster will do.`,
		newRobotCreateCommand(), newRobotRotateCommand(), newRobotRevokeCommand(), newAccountListCommand(node.KindRobot), newAccountGroupsCommand(node.KindRobot),
		newAccountEnableCommand(node.KindRobot, true), newAccountEnableCommand(node.KindRobot, false), newAccountRemoveCommand(node.KindRobot),
	)
}

func newRobotCreateCommand() *cobra.Command {
	var data, description string
	var groups []string
	var ttl lifetime
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "make a robot, and show its secret once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.CreateAccount(cmd.Context(), folder, node.NewAccount{
					Name: args[0], Kind: node.KindRobot, Groups: groups, Description: description, TTL: time.Duration(ttl),
				})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printAnswer(cmd, "is made, "+inGroups(answer.Account.Groups)+newestUntil(answer, ", with a secret that counts until "), answer)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringSliceVar(&groups, "group", nil, "a group that the robot is in; may be given several times")
	cmd.Flags().StringVar(&description, "description", "", "for people: what this is for")
	cmd.Flags().Var(&ttl, "ttl", "how long the secret counts, like 90d or 12h (default: for ever)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// newestUntil says until when the secret counts that was made; nothing if for ever.
func newestUntil(answer *node.AccountAnswer, words string) string {
	secrets := answer.Account.Secrets
	if len(secrets) == 0 || secrets[len(secrets)-1].Expires == nil {
		return ""
	}
	return words + secrets[len(secrets)-1].Expires.Local().Format(time.DateTime)
}

func newRobotRotateCommand() *cobra.Command {
	var data string
	var ttl lifetime
	keep := lifetime(24 * time.Hour)
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "give a robot another secret, beside the old one for a while",
		Long: `Make another secret and show it once. Those that the robot has count for a day more,
or for as long as --keep says, so that its pipelines can change from one to the other
without a gap; with --keep 0 they end at once, on every node.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			rotation := &node.Rotation{Keep: time.Duration(keep)}
			if cmd.Flags().Changed("ttl") {
				counts := time.Duration(ttl)
				rotation.TTL = &counts
			}
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.ChangeAccount(cmd.Context(), folder, args[0], node.AccountChange{Kind: node.KindRobot, Rotate: rotation})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printAnswer(cmd, "has another secret"+newestUntil(answer, ", which counts until "), answer)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().Var(&keep, "keep", "how much longer older secrets count")
	cmd.Flags().Var(&ttl, "ttl", "how long the new secret counts, 0 for ever (default: as long as the newest one was to count)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newRobotRevokeCommand() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "revoke NAME SECRET-ID",
		Short: "end one of a robot's secrets at once",
		Long: `End a secret, and what was logged in with it, at once and on every node. 'atoll robot
list' shows the ids. The id is the beginning of the secret's SHA-256, so that one that
was found somewhere can be told from others:  printf %s "$SECRET" | sha256sum`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := askNode(data, func(folder string) (*node.AccountAnswer, error) {
				return node.ChangeAccount(cmd.Context(), folder, args[0], node.AccountChange{Kind: node.KindRobot, Revoke: args[1]})
			})
			if err != nil {
				return err
			}
			return printAnswer(cmd, "has lost the secret "+args[1], answer)
		},
	}
	addDataFlag(cmd, &data)
	return cmd
}
