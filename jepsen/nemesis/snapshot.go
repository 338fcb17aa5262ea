package nemesis

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

// statePath and recordPath are files in a node's data folder: the state, and what tells of the last
// snapshot.
var (
	statePath  = filepath.Join("state", "state.db")
	recordPath = filepath.Join("raft", "snapshot")
)

const (
	// indexByte is where a snapshot's record has its log index, of 8 bytes, installedByte where it
	// says that it came from the leader.
	indexByte     = 8
	installedByte = 32
	// keptEntries is about how many entries of the log stay when it is cut, and cutTimeout bounds the
	// wait for that: until then a new node gets the log, and no snapshot.
	keptEntries = 250
	cutTimeout  = 30 * time.Second
	// snapshotTimeout bounds the wait for a snapshot, snapshotPoll is the pause between two looks:
	// the node's own next snapshot takes the record's place.
	snapshotTimeout = 15 * time.Second
	snapshotPoll    = 20 * time.Millisecond
	// absentLow and absentHigh are how long a node is down that is to find the log cut.
	absentLow  = 10 * time.Second
	absentHigh = 15 * time.Second
	// wholeTimeout bounds the wait for the cluster to be whole with a damaged leader in it.
	wholeTimeout = 60 * time.Second
)

// strikeSnapshot damages the leader's state while another node has to get it: one that has
// nothing, if two nodes may lose data and no other fault is around, and else one that was away
// until the log was cut.
func strikeSnapshot(ctx context.Context, f *Field, leader *cluster.Node) error {
	if err := f.Cluster.Eventually(ctx, cutTimeout, "the log is cut", func() error {
		if index := recordedIndex(readRecord(leader)); index < keptEntries {
			return fmt.Errorf("the snapshot of %s is at log index %d", leader.Name, index)
		}
		return nil
	}); err != nil {
		f.Log("there would be no snapshot: %v", err)
		return nil
	}
	others := f.others(leader)
	taker := others[f.Rand.IntN(len(others))]
	t := f.begin("rot-snapshot", leader, taker)
	defer t.end()
	if err := f.empty(ctx, taker); err != nil {
		return errors.Join(err, taker.Start())
	}
	before, logged, record := ends(leader), [2]int64{leader.LogSize(), taker.LogSize()}, readRecord(taker)
	words, err := f.rot(filepath.Join(leader.Folders[0], statePath))
	if err := errors.Join(err, taker.Start()); err != nil {
		return err
	}
	f.Log("%s of %s", words, leader.Name)
	installed := false
	wait := time.NewTimer(snapshotTimeout)
	defer wait.Stop()
	for over := false; !installed && !over; {
		select {
		case <-time.After(snapshotPoll):
		case <-wait.C:
			over = true
		}
		installed = isInstalled(record, readRecord(taker))
	}
	f.last(ctx, 2*time.Second, 5*time.Second)
	refused := aboutSnapshots(taker.LogFrom(logged[1])) + aboutSnapshots(leader.LogFrom(logged[0]))
	switch {
	case installed:
		t.saw("%s of %s, and %s has got that as a snapshot", words, leader.Name, taker.Name)
	case refused != "":
		t.saw("%s of %s, and %s has got no snapshot: %s", words, leader.Name, taker.Name, refused)
	}
	if t.sawEnd(leader, before) {
		// The cluster can't get whole, and may all the same do without it: renew sees to that.
		return f.renew(ctx, leader)
	}
	return f.replaceLeader(ctx, leader)
}

// empty has a node be down without data, or be down for long.
func (f *Field) empty(ctx context.Context, n *cluster.Node) error {
	if err := n.Kill(); err != nil {
		return err
	}
	if f.spare() < 2 {
		f.last(ctx, absentLow, absentHigh)
		return nil
	}
	if err := f.readableWithout(ctx, spareTimeout, n); err != nil {
		return err
	}
	return n.Wipe()
}

// replaceLeader wipes a node with a damaged state once the others have all their shards. It may end
// meanwhile.
func (f *Field) replaceLeader(ctx context.Context, n *cluster.Node) error {
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), wholeTimeout)
	defer cancel()
	if err := f.Cluster.WaitHealthy(whole); err != nil {
		f.Log("not whole with %s as it is: %v", n.Name, err)
	}
	return f.renew(ctx, n)
}

func readRecord(n *cluster.Node) []byte {
	record, err := os.ReadFile(filepath.Join(n.Folders[0], recordPath))
	if err != nil {
		return nil // it has none yet
	}
	return record
}

// recordedIndex returns the log index of a record, 0 if there is none.
func recordedIndex(record []byte) uint64 {
	if len(record) < indexByte+8 {
		return 0
	}
	return binary.BigEndian.Uint64(record[indexByte:])
}

// isInstalled says that a record tells of a snapshot that has come from the leader since.
func isInstalled(before, now []byte) bool {
	return len(now) > installedByte && now[installedByte] == 1 && !bytes.Equal(before, now)
}

// aboutSnapshots returns the first line of a log that tells of trouble with a snapshot.
func aboutSnapshots(log string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "snapshot") {
			return lastWords(line)
		}
	}
	return ""
}
