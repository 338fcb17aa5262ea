package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// devFileName is the file in dev's data folder that tells programs what runs.
const devFileName = "dev.json"

// devFile is its content. The form is part of the command line's interface.
type devFile struct {
	// Registry is the balancer's URL.
	Registry string        `json:"registry"`
	Nodes    []devFileNode `json:"nodes"`
}

// devFileNode is one node of it.
type devFileNode struct {
	ID         string `json:"id"`
	PID        int    `json:"pid"`
	Registry   string `json:"registry"`
	Cluster    string `json:"cluster"`
	Operations string `json:"operations"`
	Data       string `json:"data"`
	// Argv starts the node again after it was killed.
	Argv []string `json:"argv"`
}

// readDevFile reads what the last start left in a folder; nothing for a new one.
func readDevFile(dir string) (devFile, error) {
	path := filepath.Join(dir, devFileName)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return devFile{}, nil
	}
	var file devFile
	if err == nil {
		err = json.Unmarshal(content, &file)
	}
	if err != nil {
		return devFile{}, fmt.Errorf("read %s: %w", path, err)
	}
	return file, nil
}

// write replaces DIR/dev.json at once, so that who reads it never sees half of it.
func (f devFile) write(dir string) (err error) {
	path := filepath.Join(dir, devFileName)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	content, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(dir, devFileName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.Write(append(content, '\n'))
	if err := errors.Join(err, temporary.Chmod(0o644), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}
