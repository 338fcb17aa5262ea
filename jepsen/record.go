package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/atollregistry/atoll/jepsen/workload"
)

// maxRecordBytes bounds a line of a file of records.
const maxRecordBytes = 1 << 20

// Record is what is kept of a run for good: its verdict in one line of JSON.
type Record struct {
	Began     time.Time     `json:"began"`
	Program   string        `json:"program"`
	Mutant    string        `json:"mutant,omitempty"`
	Workloads string        `json:"workloads"`
	Nemesis   string        `json:"nemesis"`
	Two       bool          `json:"two,omitempty"`
	Seed      uint64        `json:"seed"`
	Nodes     int           `json:"nodes"`
	Time      time.Duration `json:"time_ns"`

	Operations map[string]Counts `json:"operations"`
	// Faults are how many there were, Effects how many of them had one that was seen.
	Faults  int `json:"faults"`
	Effects int `json:"effects"`
	// Anomalies are how many were found, Lost how many of them are of acknowledged writes that are
	// gone, Caught what they are in words, with the number of each kind.
	Anomalies int    `json:"anomalies"`
	Lost      int    `json:"lost"`
	Caught    string `json:"caught,omitempty"`
	// Gap is the longest time in which operations of one kind were asked for and not answered, GapOf that
	// kind. Writes is the longest time from a fault to the next write that was acknowledged.
	Gap    time.Duration `json:"gap_ns"`
	GapOf  string        `json:"gap_of,omitempty"`
	Writes time.Duration `json:"writes_ns"`
	// Settled is how long it took after the run until all was whole again and read back.
	Settled time.Duration `json:"settled_ns"`
}

// record sums a verdict up.
func (v *Verdict) record() Record {
	r := Record{
		Began: v.Began.UTC().Truncate(time.Second), Program: v.Program, Mutant: v.Mutant, Workloads: v.Workloads, Nemesis: v.Nemesis, Two: v.Two,
		Seed: v.Seed, Nodes: v.Nodes, Time: v.Time, Operations: v.Operations, Anomalies: len(v.Anomalies), Caught: kinds(v.Anomalies), Settled: v.Settled,
	}
	for kind, count := range v.Faults {
		r.Faults += count
		r.Effects += v.Effects[kind]
	}
	for _, a := range v.Anomalies {
		if a.Kind == workload.Lost {
			r.Lost++
		}
	}
	for _, f := range v.Figures {
		if f.Gap.Length() > r.Gap {
			r.Gap, r.GapOf = f.Gap.Length(), f.Workload+" "+f.Kind
		}
	}
	for _, recovery := range v.Recoveries {
		if recovery.Asked {
			r.Writes = max(r.Writes, recovery.Took)
		}
	}
	return r
}

// printRecords prints one for each verdict, in the order in which the runs began.
func printRecords(w io.Writer, files []string) error {
	var records []Record
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		v := &Verdict{}
		if err := json.Unmarshal(content, v); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		records = append(records, v.record())
	}
	slices.SortStableFunc(records, func(a, b Record) int { return a.Began.Compare(b.Began) })
	encoder := json.NewEncoder(w)
	for _, r := range records {
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// readRecords reads files of records.
func readRecords(files []string) (records []Record, err error) {
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, maxRecordBytes)
		for number := 1; lines.Scan(); number++ {
			var r Record
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return nil, errors.Join(fmt.Errorf("%s:%d: %w", name, number, err), file.Close())
			}
			records = append(records, r)
		}
		if err := errors.Join(lines.Err(), file.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return records, nil
}
