package blobstore

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// waitFor waits until a condition holds, or fails the test.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	for _, wire := range wireErrors() {
		sent := toStatus(fmt.Errorf("write shard x: %w: detail", wire.err))
		if status.Code(sent) != wire.code {
			t.Errorf("%v became %v", wire.err, status.Code(sent))
		}
		if got := fromStatus(status.Convert(sent).Err()); !errors.Is(got, wire.err) || status.Code(got) != wire.code {
			t.Errorf("%v came back as %v", wire.err, got)
		}
	}
}

// TestErrorsOfTheConnectionStayWhatTheyAre: a node that is down did not say
// anything about its shards.
func TestErrorsOfTheConnectionStayWhatTheyAre(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unimplemented, codes.Unauthenticated} {
		err := status.Error(code, "connection")
		if got := fromStatus(err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	for err, want := range map[error]codes.Code{
		context.Canceled:                   codes.Canceled,
		context.DeadlineExceeded:           codes.DeadlineExceeded,
		ErrClosed:                          codes.Unavailable,
		errors.New("else"):                 codes.Internal,
		status.Error(codes.Aborted, "own"): codes.Aborted,
	} {
		if got := status.Code(toStatus(fmt.Errorf("read: %w", err))); got != want {
			t.Errorf("%v became %v, want %v", err, got, want)
		}
	}
	if toStatus(nil) != nil || fromStatus(nil) != nil {
		t.Error("no error became one")
	}
}
