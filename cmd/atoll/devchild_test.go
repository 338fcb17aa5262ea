package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// childHelper makes this test program start a child and wait to be killed.
const childHelper = "ATOLL_TEST_START_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childHelper) == "" {
		code := m.Run()
		if err := removeBuiltPrograms(); err != nil {
			panic(err)
		}
		os.Exit(code)
	}
	log, err := openNodeLog(filepath.Join(os.Getenv(childHelper), "log"), func([]byte) {}, nil)
	if err != nil {
		panic(err)
	}
	children, _, err := startChildren([]childSpec{{argv: []string{"sleep", "600"}, log: log}})
	if err != nil {
		panic(err)
	}
	if _, err := os.Stdout.WriteString(strconv.Itoa(children[0].pid) + "\n"); err != nil {
		panic(err)
	}
	select {}
}

// Children end with dev, also when it gets no chance to end them.
func TestChildrenDieWithParent(t *testing.T) {
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(executable)
	parent.Env = append(os.Environ(), childHelper+"="+t.TempDir())
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 32)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the child does not run: %v", err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	eventually(t, 10*time.Second, "the child is gone", func() bool { return !alive(pid) })
}

// alive reports whether a process runs; one that is dead and not waited for does
// not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // proc(5): the state follows the name
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func TestChildOutput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var lines []string
	log, err := openNodeLog(path, func(line []byte) { lines = append(lines, string(line)) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATOLL_NAME", "leaked")
	children, release, err := startChildren([]childSpec{{argv: []string{"sh", "-c", "echo out; echo err >&2; env | grep ATOLL_; printf unfinished; exit 3"}, log: log}})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	<-children[0].ended
	if got := children[0].outcome; got != "exit status 3" {
		t.Errorf("outcome is %q", got)
	}
	if got := strings.Join(lines, "|"); got != "out|err|unfinished" {
		t.Errorf("lines are %q", got)
	}
	content, err := os.ReadFile(path)
	if err != nil || string(content) != "out\nerr\nunfinished" {
		t.Errorf("log is %q, %v", content, err)
	}
}

func TestStartFailureStopsTheOthers(t *testing.T) {
	open := func() *nodeLog {
		log, err := openNodeLog(filepath.Join(t.TempDir(), "log"), func([]byte) {}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	began := time.Now()
	_, _, err := startChildren([]childSpec{{argv: []string{"sleep", "600"}, log: open()}, {argv: []string{"/nowhere/atoll"}, log: open()}})
	if err == nil || !strings.Contains(err.Error(), "/nowhere/atoll") {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s: the first child was not killed", took)
	}
}

func TestNodeLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old\n"), maxNodeLogBytes/4-1), 0o600); err != nil {
		t.Fatal(err)
	}
	shown := 0
	log, err := openNodeLog(path, func([]byte) { shown++ }, func(err error) { t.Errorf("log is broken: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"1\n", "2\n", "3\n"} {
		if _, err := io.WriteString(log, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil || string(content) != "3\n" {
		t.Errorf("log is %q, %v, want the line that had no room", content, err)
	}
	info, err := os.Stat(path + ".1")
	if err != nil || info.Size() != maxNodeLogBytes {
		t.Errorf("log.1: %v, %v", info, err)
	}
	if shown != 3 {
		t.Errorf("%d lines were shown, want 3", shown)
	}
}

// A log that can't be written is told once, and the child does not notice.
func TestNodeLogBroken(t *testing.T) {
	told := 0
	log, err := openNodeLog(filepath.Join(t.TempDir(), "log"), func([]byte) {}, func(error) { told++ })
	if err != nil {
		t.Fatal(err)
	}
	log.file.Close()
	for range 3 {
		if n, err := log.Write([]byte("line\n")); n != 5 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// reported runs a report, lets say things to it, and returns what came out.
func reported(t *testing.T, asJSON bool, say func(*devReport)) string {
	t.Helper()
	var out bytes.Buffer
	report := newDevReport(&out, asJSON)
	say(report)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := report.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

const (
	infoLine  = `{"level":"info","node":"n1","time":"2026-01-02T03:04:05.000Z","message":"request"}`
	warnLine  = `{"level":"warn","node":"n1","time":"2026-01-02T03:04:05.000Z","message":"disk is slow"}`
	errorLine = `{"level":"error","node":"n1","time":"2026-01-02T03:04:05.000Z","error":"broken","message":"disk is gone"}`
)

func sayAll(r *devReport) {
	for _, line := range []string{infoLine, warnLine, errorLine, "panic: at the disco"} {
		r.nodeLine("n1", []byte(line))
	}
}

func TestReportForPeople(t *testing.T) {
	out := reported(t, false, func(r *devReport) {
		sayAll(r)
		r.event(zerolog.InfoLevel, "n2", "is back")
	})
	for _, want := range []string{"disk is slow", "disk is gone", "error=broken", "n1 panic: at the disco\n", "n2 is back\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "request") {
		t.Errorf("output has a line of level info:\n%s", out)
	}
	repeated := reported(t, false, func(r *devReport) {
		sayAll(r)
		sayAll(r)
		r.nodeLine("n2", []byte(warnLine))
	})
	if slow, gone := strings.Count(repeated, "disk is slow"), strings.Count(repeated, "disk is gone"); slow != 2 || gone != 2 {
		t.Errorf("a warning is shown %d times and an error %d times, want one of each node and both:\n%s", slow, gone, repeated)
	}
	quiet := reported(t, false, func(r *devReport) { r.quiet.Store(true); sayAll(r) })
	if strings.Contains(quiet, "disk is slow") || !strings.Contains(quiet, "disk is gone") {
		t.Errorf("while quiet the output is:\n%s", quiet)
	}
}

func TestReportForPrograms(t *testing.T) {
	out := reported(t, true, func(r *devReport) {
		sayAll(r)
		r.event(zerolog.InfoLevel, "n2", "is back")
		r.progress("forming")
		r.text("not for programs")
	})
	for _, want := range []string{infoLine + "\n", warnLine + "\n", `"message":"panic: at the disco"`, `"node":"n2"`, `"message":"forming"`} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %s:\n%s", want, out)
		}
	}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "{") {
			t.Errorf("line is not JSON: %s", line)
		}
	}
}

// A terminal that stands still must not make the nodes wait.
func TestReportDropsWhatNobodyReads(t *testing.T) {
	out := reported(t, false, func(r *devReport) {
		for range maxReportQueue + 10 {
			r.nodeLine("n1", []byte(errorLine))
		}
	})
	if !strings.Contains(out, "(10 lines left out)") || strings.Count(out, "disk is gone") != maxReportQueue {
		t.Errorf("output says nothing of the dropped lines, or has more than %d", maxReportQueue)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("terminal is gone") }

func TestReportWithoutTerminal(t *testing.T) {
	report := newDevReport(brokenWriter{}, false)
	report.event(zerolog.InfoLevel, "", "hello")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := report.Run(ctx); err == nil || !strings.Contains(err.Error(), "terminal is gone") {
		t.Errorf("error is %v", err)
	}
}
