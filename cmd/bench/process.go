package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// ticksPerSecond is the unit of the times in /proc/PID/stat. It is 100 on every
	// architecture that Go runs Linux on, whatever the kernel's own clock does (proc(5), time(7)).
	ticksPerSecond = 100
	// memoryInterval is the time between two looks at the servers' memory.
	memoryInterval = 100 * time.Millisecond
	// maxProcesses bounds how many processes one registry may have.
	maxProcesses = 64
)

// Usage is what the processes of a registry took during a turn, all together. Their
// children do not count.
type Usage struct {
	// CPUSeconds is user and system time, to 10 ms a process.
	CPUSeconds float64 `json:"cpu_seconds"`
	// PeakBytes is the most resident memory that they had at one moment, of those when it was looked at.
	PeakBytes int64 `json:"peak_rss_bytes"`
	// HighBytes is the sum of the most that each of them has had since it started.
	HighBytes int64 `json:"high_water_rss_bytes"`
	// LargestBytes is the most that any one of them has had since it started.
	LargestBytes int64 `json:"largest_high_water_rss_bytes"`
	// OwnBytes is the most of its own that any one of them had when it was looked at: resident memory without pages of
	// files that it has mapped, which the kernel takes back when it needs them.
	OwnBytes int64 `json:"largest_own_rss_bytes"`
}

// processes are looked at through /proc.
type processes struct {
	// proc is where that is mounted.
	proc string
	pids []int
}

// findProcesses reads what the user gave: process ids, or files that have some, which
// are read anew for each turn, since a server may be started anew before it.
func findProcesses(proc string, given []string) (processes, error) {
	p := processes{proc: proc}
	if len(given) == 0 {
		return p, nil
	}
	if runtime.GOOS != "linux" {
		return p, fmt.Errorf("processes can be measured on Linux only, not on %s", runtime.GOOS)
	}
	for _, text := range given {
		pids, err := parsePIDs(text)
		if err != nil {
			content, readErr := os.ReadFile(text)
			if readErr != nil {
				return p, fmt.Errorf("%w, nor is it a file with one: %w", err, readErr)
			}
			if pids, err = parsePIDs(string(content)); err != nil {
				return p, fmt.Errorf("%s: %w", text, err)
			}
		}
		p.pids = append(p.pids, pids...)
	}
	slices.Sort(p.pids)
	p.pids = slices.Compact(p.pids)
	if len(p.pids) == 0 || len(p.pids) > maxProcesses {
		return p, fmt.Errorf("%d processes are given, it can be 1 to %d", len(p.pids), maxProcesses)
	}
	return p, nil
}

// parsePIDs reads process ids with space between them, as pidof prints them.
func parsePIDs(text string) (pids []int, err error) {
	for _, field := range strings.Fields(text) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid < 1 {
			return nil, fmt.Errorf("%q is not a process id", field)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// thisProcess is the client's own, to see what it costs; none where that can't be told.
func thisProcess() processes {
	if runtime.GOOS != "linux" {
		return processes{}
	}
	return processes{proc: procFolder, pids: []int{os.Getpid()}}
}

// cpuSeconds is what all of them have taken since they started.
func (p processes) cpuSeconds() (float64, error) {
	var ticks uint64
	for _, pid := range p.pids {
		content, err := os.ReadFile(filepath.Join(p.proc, strconv.Itoa(pid), "stat"))
		if err != nil {
			return 0, fmt.Errorf("measure process %d: %w", pid, err)
		}
		n, err := parseStat(string(content))
		if err != nil {
			return 0, fmt.Errorf("measure process %d: %w", pid, err)
		}
		ticks += n
	}
	return float64(ticks) / ticksPerSecond, nil
}

// parseStat returns the ticks of user and system time in /proc/PID/stat.
func parseStat(stat string) (ticks uint64, err error) {
	// The second field is the program's name in parentheses, which may have anything in it.
	end := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[end+1:])
	// utime and stime are fields 14 and 15 (proc_pid_stat(5)); fields has those from 3 on.
	if end < 0 || len(fields) < 13 {
		return 0, errors.New("stat has another form")
	}
	for _, field := range fields[11:13] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat has another form: %w", err)
		}
		ticks += n
	}
	return ticks, nil
}

// memory is what processes have, in bytes.
type memory struct {
	// now is what all have; high the sum of the most that each has had, and largest the most of those; own
	// the most that one has without files.
	now, high, largest, own int64
}

// most is the most of two looks.
func (m memory) most(other memory) memory {
	return memory{now: max(m.now, other.now), high: max(m.high, other.high), largest: max(m.largest, other.largest), own: max(m.own, other.own)}
}

// memory looks at all of them.
func (p processes) memory() (sum memory, err error) {
	for _, pid := range p.pids {
		content, err := os.ReadFile(filepath.Join(p.proc, strconv.Itoa(pid), "status"))
		if err != nil {
			return memory{}, fmt.Errorf("measure process %d: %w", pid, err)
		}
		one, err := parseStatus(string(content))
		if err != nil {
			return memory{}, fmt.Errorf("measure process %d: %w", pid, err)
		}
		one.high = max(one.high, one.now) // The kernel's counts are not to the page.
		sum = memory{now: sum.now + one.now, high: sum.high + one.high, largest: max(sum.largest, one.high), own: max(sum.own, one.own)}
	}
	return sum, nil
}

// parseStatus reads VmRSS, VmHWM and RssAnon of /proc/PID/status.
func parseStatus(status string) (m memory, err error) {
	wanted := map[string]*int64{"VmRSS": &m.now, "VmHWM": &m.high, "RssAnon": &m.own}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		to := wanted[name]
		if to == nil {
			continue
		}
		delete(wanted, name)
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("status has another form: %w", err)
		}
		*to = kib << 10
	}
	if len(wanted) > 0 {
		return memory{}, errors.New("status does not say all of memory: has it ended?")
	}
	return m, nil
}

// meter measures processes from when it is made until it is stopped.
type meter struct {
	processes processes
	before    float64
	stopped   context.CancelFunc
	// peak has one value when the goroutine that looks at memory has ended.
	peak chan memory
}

// meter begins. The processes must be there; without any it measures nothing.
func (p processes) meter(ctx context.Context) (*meter, error) {
	before, err := p.cpuSeconds()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	m := &meter{processes: p, before: before, stopped: stop, peak: make(chan memory, 1)}
	go func() { // stop waits for it
		m.peak <- p.watchMemory(ctx)
	}()
	return m, nil
}

// watchMemory returns the most that was seen until ctx ended.
func (p processes) watchMemory(ctx context.Context) (peak memory) {
	if len(p.pids) == 0 {
		return peak
	}
	ticker := time.NewTicker(memoryInterval)
	defer ticker.Stop()
	for {
		seen, err := p.memory()
		if err != nil {
			return peak // stop meets the same error and returns it
		}
		peak = peak.most(seen)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return peak
		}
	}
}

// stop returns what was measured, or nil without processes. It fails when one of them has ended.
func (m *meter) stop() (*Usage, error) {
	m.stopped()
	peak := <-m.peak
	if len(m.processes.pids) == 0 {
		return nil, nil
	}
	after, err := m.processes.cpuSeconds()
	if err != nil {
		return nil, err
	}
	seen, err := m.processes.memory()
	if err != nil {
		return nil, err
	}
	peak = peak.most(seen)
	return &Usage{
		CPUSeconds: after - m.before, PeakBytes: peak.now, HighBytes: peak.high, LargestBytes: peak.largest, OwnBytes: peak.own,
	}, nil
}
