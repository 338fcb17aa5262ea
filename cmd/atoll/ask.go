package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

// addDataFlag adds the flag that says which node to ask.
func addDataFlag(cmd *cobra.Command, data *string) {
	cmd.Flags().StringVar(data, "data", "./atoll-data", "a node's data folder, or the folder of dev")
}

// printJSON prints an answer for programs.
func printJSON(w io.Writer, answer any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(answer)
}

// askNode asks the nodes of a folder one after the other, until one of them runs.
func askNode[T any](dir string, ask func(folder string) (T, error)) (answer T, err error) {
	folders, err := nodeFolders(dir)
	if err != nil {
		return answer, err
	}
	for _, folder := range folders {
		answer, err = ask(folder)
		if !errors.Is(err, syscall.ECONNREFUSED) { // a socket that a dead process has left
			return answer, err
		}
	}
	return answer, fmt.Errorf("no node runs in %s", dir)
}

// nodeFolders finds the data folders that have an operator's socket: the folder
// itself, or those right below it.
func nodeFolders(dir string) ([]string, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("look for nodes: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, node.AdminSocket)); err == nil {
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for nodes: %w", err)
	}
	var folders []string
	for _, entry := range entries {
		folder := filepath.Join(dir, entry.Name())
		if _, err := os.Lstat(filepath.Join(folder, node.AdminSocket)); err == nil {
			folders = append(folders, folder)
		}
	}
	if len(folders) == 0 {
		return nil, fmt.Errorf("no node has run in %s or right below it: name a node's data folder or that of dev with --data", dir)
	}
	return folders, nil
}
