package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The page and its plot, in the module's folder.
const (
	pageName = "docs/performance.md"
	plotName = "docs/performance.svg"
)

// What stands between these lines of the page is written by this program.
const (
	beginMark = "<!-- results begin: written by go run ./cmd/performance --write -->"
	endMark   = "<!-- results end -->"
)

// writeDocs writes the page and the plot from the reports that are in the folder for them.
func (l *lab) writeDocs() error {
	results, err := loadResults(l.options.out)
	if err != nil {
		return err
	}
	path := filepath.Join(l.root, pageName)
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	written, err := replaceSection(string(page), resultsSection(results))
	if err != nil {
		return fmt.Errorf("%s: %w", pageName, err)
	}
	return errors.Join(
		os.WriteFile(path, []byte(written), 0o644),
		os.WriteFile(filepath.Join(l.root, plotName), []byte(plot(results)), 0o644),
	)
}

// replaceSection puts a text in the place of what is between the marks, which stay. Each must
// be there once.
func replaceSection(page, section string) (string, error) {
	if strings.Count(page, beginMark) != 1 || strings.Count(page, endMark) != 1 {
		return "", fmt.Errorf("it must have each of the lines %s and %s once", beginMark, endMark)
	}
	before, rest, _ := strings.Cut(page, beginMark)
	_, after, found := strings.Cut(rest, endMark)
	if !found {
		return "", errors.New("the end of results stands before their beginning")
	}
	return before + beginMark + "\n\n" + strings.TrimSpace(section) + "\n\n" + endMark + after, nil
}
