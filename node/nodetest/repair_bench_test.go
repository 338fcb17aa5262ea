package nodetest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

var repairGiB = flag.Int("repair-gib", 2, "what BenchmarkRepair stores before a node loses its disk, in GiB")

// BenchmarkRepair measures how fast the shards of a node that lost its disk are
// rebuilt, against what the machine can do: reading everything back through one
// node, which takes the same way, and copying that node's shard files, with an
// fsync each. All nodes share this machine, so that the bound is doing one after the
// other. Then it measures what a throttled repair does to pulls.
//
//	go test -run '^$' -bench Repair -benchtime 1x -timeout 1h ./node/nodetest [-repair-gib 20]
func BenchmarkRepair(b *testing.B) {
	const blobMiB = 64
	c := Start(b, 4, quickExpiry)
	for i := range *repairGiB * 1024 / blobMiB {
		if _, err := c.PushBlob("a", Bytes(uint64(i), blobMiB<<20), c.Members[i%4]); err != nil {
			b.Fatal(err)
		}
	}
	victim := c.Members[3]
	copied := copyShards(b, victim)
	read := c.readBack(b, c.Members[0])
	repaired := c.loseDisk(b, victim, 0)
	b.ReportMetric(copied, "copy-MB/s")
	b.ReportMetric(read, "read-MB/s")
	b.ReportMetric(repaired, "repair-MB/s")
	b.ReportMetric(repaired*(shardsRead/read+1/copied), "repair/bound")

	calm := c.pullLatency(b, c.Members[0], 500)
	done := make(chan float64, 1)
	go func() { done <- c.loseDisk(b, victim, 16<<20) }()
	var busy []time.Duration
	for len(done) == 0 {
		busy = append(busy, c.pullLatency(b, c.Members[0], 50)...)
	}
	b.ReportMetric(<-done, "throttled-MB/s")
	b.ReportMetric(p99(busy).Seconds()*1000, "busy-p99-ms")
	b.ReportMetric(p99(calm).Seconds()*1000, "calm-p99-ms")
	b.ReportMetric(float64(p99(busy))/float64(p99(calm)), "busy/calm-p99")
}

// shardsRead is how many shards each rebuilt one takes, k on four nodes.
const shardsRead = 3

// repairRate sets the settings.
func (c *Cluster) repairRate(b *testing.B, bytesPerSecond uint64) {
	err := c.Members[0].running().Metadata().ChangeSettings(context.Background(), func(s *atoll.Settings) {
		s.RepairBytesPerSecond = bytesPerSecond
	})
	if err != nil {
		b.Fatal(err)
	}
}

// copyShards copies a node's shard files and returns MB a second.
func copyShards(b *testing.B, m *Member) float64 {
	dir := b.TempDir()
	began, size := time.Now(), int64(0)
	for i, file := range m.ShardFiles() {
		n, err := copySynced(file, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			b.Fatal(err)
		}
		size += n
	}
	speed := float64(size) / 1e6 / time.Since(began).Seconds()
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	return speed
}

func copySynced(from, to string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	n, err := io.Copy(out, in)
	if err != nil {
		return n, err
	}
	return n, out.Sync()
}

// readBack pulls everything through one node, four at once as repair does, and
// returns MB a second.
func (c *Cluster) readBack(b *testing.B, via *Member) float64 {
	acked := c.Acked()
	began, size := time.Now(), 0
	var running sync.WaitGroup
	for i := range 4 {
		running.Go(func() {
			for j := i; j < len(acked); j += 4 {
				if err := via.drain(acked[j]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	running.Wait()
	for _, one := range acked {
		size += one.Size
	}
	return float64(size) / 1e6 / time.Since(began).Seconds()
}

// drain pulls a blob and drops its bytes.
func (m *Member) drain(acked Acked) error {
	response, err := http.Get(m.URL() + "/v2/" + acked.Repository + "/blobs/" + acked.Digest)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if n, err := io.Copy(io.Discard, response.Body); err != nil || n != int64(acked.Size) {
		return fmt.Errorf("pulled %d of %d bytes: %w", n, acked.Size, err)
	}
	return nil
}

// loseDisk wipes a node, waits until it has its shards again, and returns how many
// MB a second were rebuilt at the rate given, from when the node was back.
func (c *Cluster) loseDisk(b *testing.B, m *Member, bytesPerSecond uint64) float64 {
	c.repairRate(b, 1<<20)
	m.Crash()
	m.Wipe()
	m.Start()
	m.WaitReady()
	c.repairRate(b, bytesPerSecond)
	began := time.Now()
	c.waitWhole(time.Hour)
	took := time.Since(began)
	size := int64(0)
	for _, file := range m.ShardFiles() {
		info, err := os.Stat(file)
		if err != nil {
			b.Fatal(err)
		}
		size += info.Size()
	}
	return float64(size) / 1e6 / took.Seconds()
}

// pullLatency pulls the first MiB of blobs, one after the other.
func (c *Cluster) pullLatency(b *testing.B, via *Member, pulls int) (took []time.Duration) {
	acked := c.Acked()
	for i := range pulls {
		began := time.Now()
		one := acked[i*7%len(acked)]
		response, _, err := via.Do("GET", "/v2/"+one.Repository+"/blobs/"+one.Digest, nil, map[string][]string{"Range": {"bytes=0-1048575"}})
		if err != nil || response.StatusCode != 206 {
			b.Fatalf("pull: %v %v", response, err)
		}
		took = append(took, time.Since(began))
	}
	return took
}

func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}
