package blobstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// productionSizes are those of DefaultConfig.
func productionSizes(cfg *Config) {
	defaults := DefaultConfig()
	cfg.CellBytes, cfg.SmallBlobBytes = defaults.CellBytes, defaults.SmallBlobBytes
	cfg.MaxExtentBytes, cfg.BufferBytes = defaults.MaxExtentBytes, defaults.BufferBytes
}

// cpuTime returns the processor time of this process: of all nodes together.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// reportCPU reports processor seconds a GB.
func reportCPU(b *testing.B, began time.Duration, bytes int) {
	b.ReportMetric((cpuTime()-began).Seconds()/(float64(bytes)*float64(b.N)/1e9), "cpu-s/GB")
}

func BenchmarkEncode(b *testing.B) {
	for _, counts := range [][2]int{{1, 1}, {2, 1}, {3, 2}, {8, 2}} {
		b.Run(fmt.Sprintf("%d+%d", counts[0], counts[1]), func(b *testing.B) {
			l := layout{data: counts[0], parity: counts[1], cell: 256 << 10}
			buf := newBuffers(64 << 20).overdraw(stripeMemory(l))
			st := newStripe(buf, make(chan struct{}, 1))
			st.filled = l.stripeBytes()
			var code erasure
			b.SetBytes(int64(st.filled))
			for b.Loop() {
				if _, err := st.encode(l, &code); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAppend stores blobs; all nodes run in this process, without TLS.
func BenchmarkAppend(b *testing.B) {
	for _, nodes := range []int{1, 3, 5} {
		for _, size := range []int{4 << 10, 1 << 20, 256 << 20} {
			b.Run(fmt.Sprintf("nodes=%d/bytes=%d", nodes, size), func(b *testing.B) {
				c := startCluster(b, nodes, productionSizes)
				content := randomBytes(size, 1)
				b.SetBytes(int64(size))
				began := cpuTime()
				for b.Loop() {
					if _, _, _, err := c.nodes[0].store.Append(context.Background(), Progress{}, bytes.NewReader(content), nil); err != nil {
						b.Fatal(err)
					}
				}
				reportCPU(b, began, size)
			})
		}
	}
}

// BenchmarkRead reads blobs: whole, degraded, and a little of them.
func BenchmarkRead(b *testing.B) {
	const size = 256 << 20
	for _, nodes := range []int{1, 3, 5} {
		c := startCluster(b, nodes, productionSizes)
		content := c.nodes[0].push(size, 1)
		read := func(b *testing.B, offset, length uint64) {
			b.SetBytes(int64(length))
			began := cpuTime()
			for b.Loop() {
				reader, err := c.nodes[0].store.Read(context.Background(), content.extents, offset, length)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, reader); uint64(n) != length || err != nil {
					b.Fatal(n, err)
				}
				_ = reader.Close()
			}
			reportCPU(b, began, int(length))
		}
		b.Run(fmt.Sprintf("nodes=%d/whole", nodes), func(b *testing.B) { read(b, 0, size) })
		b.Run(fmt.Sprintf("nodes=%d/4KiB", nodes), func(b *testing.B) { read(b, size/3, 4<<10) })
		if nodes > 1 {
			// The holder of the first data shard that is not the reader itself.
			for number, holder := range content.extents[0].GetHolders() {
				if holder != c.nodes[0].id {
					for _, e := range content.extents {
						c.remove(e, number)
					}
					break
				}
			}
			b.Run(fmt.Sprintf("nodes=%d/degraded", nodes), func(b *testing.B) { read(b, 0, size) })
		}
		runtime.GC()
	}
}
