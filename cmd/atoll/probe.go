package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// probeInterval is the time between two probes of one node.
	probeInterval = 500 * time.Millisecond
	// probeTimeout is how long a node may take to answer one.
	probeTimeout = 2 * time.Second
	// maxProbeBody bounds what is read of an answer.
	maxProbeBody = 64 << 10
)

// readiness is what a node can do right now.
type readiness int32

const (
	// readinessNone: nothing answers.
	readinessNone readiness = iota
	// readinessAlive: the process answers, but serves nothing.
	readinessAlive
	// readinessRead: it serves pulls, but no pushes.
	readinessRead
	// readinessFull: it serves both.
	readinessFull
)

// String says it to people.
func (r readiness) String() string {
	return [...]string{"does not answer", "not ready", "ready for pulls only", "ready"}[r]
}

// target is one node as the balancer sees it.
type target struct {
	// address is HOST:PORT of the registry port.
	address string
	// operations is the base URL of the operations port.
	operations string
	level      atomic.Int32
}

func (t *target) get() readiness  { return readiness(t.level.Load()) }
func (t *target) set(r readiness) { t.level.Store(int32(r)) }

// probeAll keeps the readiness of all targets up to date until ctx ends.
func probeAll(ctx context.Context, targets []*target) {
	client := &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 1, DisableCompression: true},
		Timeout:   probeTimeout,
	}
	defer client.CloseIdleConnections()
	var running sync.WaitGroup
	for _, t := range targets {
		running.Go(func() {
			ticker := time.NewTicker(probeInterval)
			defer ticker.Stop()
			for {
				t.set(probe(ctx, client, t.operations))
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	running.Wait()
}

// probe asks a node what it can do.
func probe(ctx context.Context, client *http.Client, operations string) readiness {
	status, err := get(ctx, client, operations+"/readyz")
	if err != nil {
		return readinessNone
	}
	if status == http.StatusOK {
		return readinessFull
	}
	if status, err := get(ctx, client, operations+"/readyz/read"); err == nil && status == http.StatusOK {
		return readinessRead
	}
	return readinessAlive
}

func get(ctx context.Context, client *http.Client, url string) (status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("probe %s: %w", url, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, fmt.Errorf("probe %s: %w", url, err)
	}
	defer response.Body.Close()
	// Read to the end so that the connection is used again.
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, maxProbeBody)); err != nil {
		return 0, fmt.Errorf("probe %s: %w", url, err)
	}
	return response.StatusCode, nil
}
