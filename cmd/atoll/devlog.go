package main

import (
	"bytes"
	"fmt"
	"os"
)

const (
	// maxNodeLogBytes is how long a node's log gets before it becomes log.1, in
	// the place of the one before.
	maxNodeLogBytes = 64 << 20
	// maxLogLine bounds what is kept of a line without an end.
	maxLogLine = 64 << 10
)

// nodeLog takes a child's output: it goes to a file, and each line to show.
// It never fails, since the child would then fail to write.
type nodeLog struct {
	path string
	file *os.File
	size int64
	// line is the last line as far as it has come.
	line []byte
	show func(line []byte)
	// broken is told once if the file can't be written.
	broken func(error)
}

func openNodeLog(path string, show func(line []byte), broken func(error)) (*nodeLog, error) {
	l := &nodeLog{path: path, show: show, broken: broken}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *nodeLog) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write implements io.Writer for the one goroutine that reads the child's pipe.
func (l *nodeLog) Write(output []byte) (int, error) {
	if err := l.store(output); err != nil && l.broken != nil {
		l.broken(err)
		l.broken = nil
	}
	rest := output
	for {
		part, after, ended := bytes.Cut(rest, []byte("\n"))
		if room := maxLogLine - len(l.line); room > 0 {
			l.line = append(l.line, part[:min(len(part), room)]...)
		}
		if !ended {
			return len(output), nil
		}
		l.show(l.line)
		l.line, rest = l.line[:0], after
	}
}

func (l *nodeLog) store(output []byte) error {
	if l.size+int64(len(output)) > maxNodeLogBytes {
		if err := os.Rename(l.path, l.path+".1"); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
		l.file.Close()
		if err := l.open(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(output)
	l.size += int64(n)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// Close ends the log when the child has ended.
func (l *nodeLog) Close() error {
	if len(l.line) > 0 {
		l.show(l.line)
	}
	return l.file.Close()
}
