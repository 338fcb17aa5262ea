package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/atollregistry/atoll/cmd/bench"
)

// result is what came of a row.
type result struct {
	row     row
	Row     string        `json:"row"`
	Machine machine       `json:"machine"`
	Report  *bench.Report `json:"report"`
	// Reads is how often a node read shards for clients in a turn, of all nodes and turns the most; 0
	// if that does not matter to the row.
	Reads float64 `json:"most_shard_reads_of_a_node,omitempty"`
}

// reference and ours are the two that were measured.
func (r *result) reference() *bench.RegistryReport { return &r.Report.Registries[0] }
func (r *result) ours() *bench.RegistryReport      { return &r.Report.Registries[1] }

// complete fails for a result in which something is missing that is told of.
func (r *result) complete() error {
	if r.Report == nil || len(r.Report.Registries) != 2 {
		return errors.New("it is no report of two servers")
	}
	for _, registry := range r.Report.Registries {
		for _, turn := range registry.Turns {
			if turn.ServersError != "" {
				return fmt.Errorf("%s: %s", registry.Name, turn.ServersError)
			}
			if turn.Operations == 0 {
				return fmt.Errorf("%s did no operation in a turn%s", registry.Name, firstFault(turn))
			}
		}
	}
	if r.ours().Summary[r.row.by].Ratio == nil {
		return fmt.Errorf("%s has no ratio of %s", r.Row, r.row.by)
	}
	return nil
}

// firstFault is why operations failed, as the end of a sentence.
func firstFault(turn bench.Turn) string {
	if len(turn.Errors) == 0 {
		return ""
	}
	return ", first error: " + turn.Errors[0].First
}

// nodeBytes is the most memory that one node has had.
func (r *result) nodeBytes() (most int64) {
	for _, turn := range r.ours().Turns {
		if turn.Servers != nil {
			most = max(most, turn.Servers.LargestBytes)
		}
	}
	return most
}

// ownBytes is the most that one node has had without mapped files.
func (r *result) ownBytes() (most int64) {
	for _, turn := range r.ours().Turns {
		if turn.Servers != nil {
			most = max(most, turn.Servers.OwnBytes)
		}
	}
	return most
}

// memoryText tells of the largest node.
func (r *result) memoryText() string {
	return fmt.Sprintf("%d MiB, own %d", r.nodeBytes()/mib, r.ownBytes()/mib)
}

// resultPath is where the result of a row is kept in a folder.
func resultPath(folder, name string) string { return filepath.Join(folder, name+".json") }

// save writes the result into a folder. An earlier one of the row is gone then.
func (r *result) save(folder string) error {
	encoded, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("save report: %w", err)
	}
	if err := os.WriteFile(resultPath(folder, r.Row), append(encoded, '\n'), 0o644); err != nil {
		return fmt.Errorf("save report: %w", err)
	}
	return nil
}

// loadResults reads the results of all rows from a folder. It fails if one is missing, or
// was taken on another machine, or with other programs, than the rest.
func loadResults(folder string) (results []*result, err error) {
	for _, r := range rows() {
		encoded, err := os.ReadFile(resultPath(folder, r.name))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s has no report of the row %s: measure it with --only %s --out %s", folder, r.name, r.name, folder)
		}
		loaded := &result{row: r}
		if err == nil {
			err = json.Unmarshal(encoded, loaded)
		}
		if err == nil {
			err = loaded.complete()
		}
		if err != nil {
			return nil, fmt.Errorf("report of the row %s: %w", r.name, err)
		}
		if first := append(results, loaded)[0]; loaded.Machine != first.Machine {
			return nil, fmt.Errorf("the reports of %s and %s in %s are of different machines or programs: measure all rows anew", first.Row, r.name, folder)
		}
		results = append(results, loaded)
	}
	return results, nil
}
