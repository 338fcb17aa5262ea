package node

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Home is the first data folder; empty if there is none.
func (c *Config) Home() string {
	if len(c.Data) == 0 {
		return ""
	}
	return c.Data[0]
}

// validateData also tells folders from each other that are written differently.
func (c *Config) validateData() (faults []error) {
	if c.Home() == "" {
		return []error{errors.New("data: no data folder given")}
	}
	seen := make(map[string]bool)
	for _, dir := range c.Data {
		path, err := filepath.Abs(dir)
		switch {
		case dir == "":
			faults = append(faults, errors.New("data: a folder has no name"))
		case err != nil:
			faults = append(faults, fmt.Errorf("data: %w", err))
		case seen[path]:
			faults = append(faults, fmt.Errorf("data: folder %s is given twice", dir))
		}
		seen[path] = true
	}
	return faults
}
