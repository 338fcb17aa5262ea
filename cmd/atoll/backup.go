package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newBackupCommand() *cobra.Command {
	var data, to string
	var blobs, reread bool
	cmd := &cobra.Command{
		Use:   "backup --to FOLDER|FILE",
		Short: "copy the metadata, and the blobs if wanted, while the cluster runs",
		Long: `Write the cluster's metadata as it is now to a file: repositories, tags, manifests,
and who holds what. It has secrets of the cluster, so keep it like a key. With
--blobs the bytes of all blobs are copied as well, into a folder; those that are
there from the last time are not copied again. 'atoll restore' brings all of it into
an empty cluster of any size. DIR is a node's data folder, or the folder of dev; any
node of the cluster will do, and it needs no access to the backup.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case to == "":
				return errors.New("--to: say where to write the backup")
			case reread && !blobs:
				return errors.New("--reread is about blobs: use it with --blobs")
			}
			return backup(cmd.Context(), cmd.OutOrStdout(), data, to, blobs, reread)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringVar(&to, "to", "", "a folder, or without --blobs a file")
	cmd.Flags().BoolVar(&blobs, "blobs", false, "copy the blobs as well")
	cmd.Flags().BoolVar(&reread, "reread", false, "compare the blobs that are there already with their digests, and copy those anew that have rotted")
	return cmd
}

func backup(ctx context.Context, w io.Writer, data, to string, blobs, reread bool) error {
	info, err := os.Stat(to)
	toFolder := blobs || err == nil && info.IsDir()
	summary, err := askNode(data, func(folder string) (*node.BackupSummary, error) {
		if !toFolder {
			return node.BackupMetadata(ctx, folder, to)
		}
		return node.Backup(ctx, folder, to, blobs, reread)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "cluster %s as of log index %d is in %s\n", summary.Cluster, summary.LogIndex, summary.Metadata)
	if blobs {
		fmt.Fprintf(w, "%d blobs, %s; %d of them new, %s\n", summary.Blobs, binaryBytes(summary.BlobBytes), summary.Copied, binaryBytes(summary.CopiedBytes))
	}
	if summary.Deleted > 0 {
		fmt.Fprintf(w, "%d blobs were deleted before they could be copied\n", summary.Deleted)
	}
	return faultsOf("copied", summary.FaultCount, summary.Faults)
}

func newRestoreCommand() *cobra.Command {
	var data, from string
	var resume bool
	cmd := &cobra.Command{
		Use:   "restore --from FOLDER",
		Short: "bring a backup into an empty cluster",
		Long: `Push everything that is in a backup into an empty cluster, of any size: blobs,
manifests and tags of all repositories, and before them the policy and the accounts,
of which those stay that the cluster has. Uploads that were under way are not in it.
FOLDER is one that 'atoll backup --blobs' has written, of which the newest complete
backup is taken, or one of the metadata files in it. A restore that was cut off is
continued with --resume. DIR is a node's data folder, or the folder of dev; any node
of the cluster will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return errors.New("--from: say where the backup is")
			}
			summary, err := askNode(data, func(folder string) (*node.RestoreSummary, error) {
				return node.Restore(cmd.Context(), folder, from, resume)
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "restored %d repositories with %d manifests and %d tags; %d blobs were sent, %s\n",
				summary.Repositories, summary.Manifests, summary.Tags, summary.Blobs, binaryBytes(summary.BlobBytes))
			if summary.Accounts > 0 || summary.Policy {
				policy := "not the policy, since the backup has none or the cluster has its own"
				if summary.Policy {
					policy = "the policy"
				}
				fmt.Fprintf(cmd.OutOrStdout(), "restored %d accounts and %s\n", summary.Accounts, policy)
			}
			return faultsOf("restored", summary.FaultCount, summary.Faults)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringVar(&from, "from", "", "the backup's folder, or one of its metadata files")
	cmd.Flags().BoolVar(&resume, "resume", false, "go on with a restore that was cut off")
	return cmd
}

// faultsOf is the error of what is incomplete.
func faultsOf(done string, count uint64, faults []string) error {
	if count == 0 {
		return nil
	}
	errs := []error{fmt.Errorf("%d things could not be %s", count, done)}
	for _, fault := range faults {
		errs = append(errs, errors.New("  "+fault))
	}
	return errors.Join(errs...)
}
