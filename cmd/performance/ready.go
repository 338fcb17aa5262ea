package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// readyTimeout is how long a server may take until it serves.
	readyTimeout = 2 * time.Minute
	// readyInterval is the time between two questions whether it does.
	readyInterval = 50 * time.Millisecond
	// askTimeout bounds one of them.
	askTimeout = 10 * time.Second
	// maxAnswerBytes bounds what is read of an answer.
	maxAnswerBytes = 4 * mib
)

// await returns when a URL answers 200. It fails when the process that should answer has ended.
func await(ctx context.Context, p *process, url string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for {
		_, last := ask(ctx, url)
		if last == nil {
			return nil
		}
		if err := p.failure(); err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve: %w: %w", p.name(), ctx.Err(), last)
		}
	}
}

// ask returns what a URL answers. Another status than 200 is an error.
func ask(ctx context.Context, url string) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Close = true // servers come and go
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes)); err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s answers %s", url, response.Status)
	}
	return body, nil
}
