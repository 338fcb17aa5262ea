package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Fault is one kind of error.
type Fault struct {
	// Kind is a few words: "status 503", "timeout", "connection refused".
	Kind string `json:"kind"`
	// Count is how many operations ended so.
	Count int `json:"count"`
	// First is the whole text of the first of them.
	First string `json:"first"`
}

// maxFaults bounds how many kinds are told apart; the rest are "other".
const maxFaults = 32

// faults counts errors by kind. It is not for several goroutines.
type faults []Fault

func (f *faults) add(err error) { f.merge(faults{{Kind: kindOf(err), Count: 1, First: err.Error()}}) }

func (f *faults) merge(others faults) {
	for _, other := range others {
		if len(*f) >= maxFaults-1 && f.find(other.Kind) < 0 {
			other.Kind = "other"
		}
		if i := f.find(other.Kind); i >= 0 {
			(*f)[i].Count += other.Count
			continue
		}
		*f = append(*f, other)
	}
}

func (f *faults) find(kind string) int {
	return slices.IndexFunc(*f, func(fault Fault) bool { return fault.Kind == kind })
}

// sorted has the most frequent first.
func (f faults) sorted() []Fault {
	return slices.SortedFunc(slices.Values(f), func(a, b Fault) int {
		if a.Count != b.Count {
			return b.Count - a.Count
		}
		return strings.Compare(a.Kind, b.Kind)
	})
}

var (
	errLength  = errors.New("length is not what was asked for")
	errContent = errors.New("content is not what was pushed")
)

// statusError is an answer that is not the one that the protocol has for success.
type statusError struct {
	method, url string
	status      int
	// body is the beginning of what the registry said about it.
	body string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s %s answers %d: %s", e.method, e.url, e.status, e.body)
}

// kindOf says in a few words what went wrong, the same words for the same cause.
func kindOf(err error) string {
	var status *statusError
	var network net.Error
	switch {
	case errors.As(err, &status):
		return fmt.Sprintf("status %d", status.status)
	case errors.Is(err, errLength):
		return "length"
	case errors.Is(err, errContent):
		return "content"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "cut off"
	}
	return "other"
}
