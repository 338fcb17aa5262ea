package main

import (
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newServeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "run one node of a cluster",
		Long: `Run one node of a cluster, until it is told to stop.

Every setting can be given as a flag, as an environment variable (ATOLL_ and the
flag's name in capitals: --registry-listen is ATOLL_REGISTRY_LISTEN) or in a YAML
file (registry.listen); flags win over the environment, and the environment wins
over the file. A name that is not known is an error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd.Flags(), os.Environ())
			if err != nil {
				return err
			}
			// A wrong log setting is one of the faults that New reports.
			n, err := node.New(cfg, newLogger(cfg.Log, cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			floor := keepHeapFloor()
			defer runtime.KeepAlive(floor)
			return n.Run(cmd.Context())
		},
	}
	addSettingFlags(cmd.Flags())
	return cmd
}
