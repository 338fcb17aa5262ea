package blobstore

import (
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// intakeBytes is, at most, how much of a stripe must have come before memory for it is asked
	// for. It is outside of the budget: a client that sends next to nothing holds this
	// and no more.
	intakeBytes = 32 << 10
	// patience is how long a stripe may take to fill while others wait for memory.
	patience = 5 * time.Second
	// patiencePoll is how often it is asked whether others wait, once patience is over.
	patiencePoll = 500 * time.Millisecond
	// directShare is the part of the budget, one in so many bytes, that may be with
	// reads that go into a stripe at once, and can't be given back before they return.
	directShare = 4
)

// intake reads a client's bytes in a way that can be left waiting: into a little
// memory of its own. For one goroutine.
type intake struct {
	source io.Reader
	memory []byte
	// from and to are where in memory the bytes are that were not taken yet.
	from, to int
	// ended says that the source has no more than that.
	ended bool
	// empty counts the reads in a row that returned nothing and no error.
	empty int
	// results gets that of the read under way, if reading is set.
	results chan intakeResult
	reading bool
}

type intakeResult struct {
	bytes int
	err   error
}

// newIntake gathers no more than a cell, since that is all that a small stripe has.
func newIntake(source io.Reader, cellBytes int) *intake {
	return &intake{source: source, memory: make([]byte, min(intakeBytes, cellBytes)), results: make(chan intakeResult, 1)}
}

// exhausted says that all bytes were taken and there are no more.
func (i *intake) exhausted() bool { return i.ended && i.from == i.to }

// begin begins to read on a goroutine of its own, unless that is under way.
func (i *intake) begin() {
	if i.reading {
		return
	}
	i.makeRoom()
	i.reading = true
	room := i.memory[i.to:]
	go func() { // close waits for it.
		n, err := i.source.Read(room)
		i.results <- intakeResult{n, err}
	}()
}

// makeRoom must be called before memory behind to is used.
func (i *intake) makeRoom() {
	if i.from == i.to {
		i.from, i.to = 0, 0
	}
}

// note takes down what a read returned.
func (i *intake) note(read intakeResult) error {
	switch {
	case errors.Is(read.err, io.EOF):
		i.ended = true
	case read.err != nil:
		return fmt.Errorf("read source: %w", read.err)
	case read.bytes > 0:
		i.empty = 0
	default:
		if i.empty++; i.empty == maxEmptyReads {
			return fmt.Errorf("read source: %w", io.ErrNoProgress)
		}
	}
	return nil
}

// arrived takes over what the read under way returned.
func (i *intake) arrived(read intakeResult) error {
	i.reading = false
	i.to += read.bytes
	return i.note(read)
}

// gather returns when so much has come that a stripe is worth its memory, or the
// source has ended.
func (i *intake) gather() error {
	for !i.ended && (i.reading || i.to-i.from < len(i.memory)) {
		if i.reading {
			if err := i.arrived(<-i.results); err != nil {
				return err
			}
			continue
		}
		i.makeRoom()
		if i.to == len(i.memory) {
			return nil // What came before is not taken yet.
		}
		n, err := i.source.Read(i.memory[i.to:])
		i.to += n
		if err := i.note(intakeResult{n, err}); err != nil {
			return err
		}
	}
	return nil
}

// take moves bytes to p.
func (i *intake) take(p []byte) int {
	n := copy(p, i.memory[i.from:i.to])
	i.from += n
	return n
}

// close waits for the read under way: the source may not be read any more.
func (i *intake) close() {
	if i.reading {
		<-i.results
		i.reading = false
	}
}
