package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newCertsCommand() *cobra.Command {
	var cfg node.CertificatesConfig
	cmd := &cobra.Command{
		Use:   "certs --dir DIR NAME...",
		Short: "make the cluster's certificate authority and a certificate for each node",
		Long: `Make the cluster's certificate authority (DIR/ca.crt, DIR/ca.key) and for each
node a folder DIR/NAME with ca.crt, node.crt and node.key: what cluster.ca,
cluster.cert and cluster.key want. Give each machine its node's folder and
nothing else; keep ca.key to yourself, since who has it can make nodes.

Files that exist are checked and kept, never overwritten, so the command can be
repeated, and nodes can be added later.`,
		Example: "  atoll certs --dir ./certs n1 n2 n3",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			cfg.Nodes = names
			made, err := node.MakeCertificates(cfg)
			if err != nil {
				return err
			}
			for _, certificate := range made {
				what := "kept"
				if certificate.Made {
					what = "made"
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", what, certificate.Cert); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&cfg.Dir, "dir", "", "folder of certificates, made when absent")
	cmd.Flags().StringVar(&cfg.Cluster, "cluster", "", "the cluster's name in the certificates (default: that of the authority in DIR, or "+node.DefaultClusterName+")")
	if err := cmd.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined right above
	}
	return cmd
}
