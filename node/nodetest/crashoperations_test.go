package nodetest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"

	"github.com/atollregistry/atoll/node"
)

const (
	// crashLayer is the size of an image's layer: two stripes of three data shards.
	crashLayer = 900 << 10
	// crashHarmed is how many shards of one node are harmed.
	crashHarmed = 3
)

// nextImage names an image that nobody has pushed.
func (x *crashTrial) nextImage() {
	x.count++
	x.seed, x.image = x.count, fmt.Sprint("image", x.count)
}

// push pushes the trial's image through the subject.
func (x *crashTrial) push() error {
	if _, err := x.PushImage(x.image, x.image, [][]byte{Bytes(x.seed, crashLayer)}, x.subject.Member); err != nil {
		return err
	}
	if !slices.Contains(x.images, x.image) {
		x.images = append(x.images, x.image)
	}
	return nil
}

// pushAnother pushes images beside those that are there.
func (x *crashTrial) pushAnother(images int) {
	x.t.Helper()
	for i := range images {
		if i > 0 {
			x.nextImage()
		}
		if err := x.push(); err != nil {
			x.t.Fatal(err)
		}
	}
	if err := x.settle(); err != nil {
		x.t.Fatal(err)
	}
}

// harm takes shards off the subject's disk, or bits of them. All that are there are
// on record: nobody mends the others.
func (x *crashTrial) harm() {
	x.t.Helper()
	x.pushAnother(1)
	if err := x.sweep(); err != nil {
		x.t.Fatal(err)
	}
	for i, file := range x.subject.ShardFiles() {
		if i == crashHarmed {
			break
		}
		if i == 1 {
			FlipBit(x.t, file)
		} else if err := os.Remove(file); err != nil {
			x.t.Fatal(err)
		}
		x.harmed = append(x.harmed, file)
	}
}

// mend has the damage found and waits until there is none. What was rebuilt on another
// node leaves its damaged file behind, which nobody mends: it is swept.
func (x *crashTrial) mend() error {
	return x.until(x.victim, "every shard is sound", func() error {
		found, err := x.scrub()
		if err == nil && found > 0 {
			err = fmt.Errorf("%d are not", found)
		}
		settled := x.settle()
		if err != nil && settled == nil {
			settled = x.sweep()
		}
		return errors.Join(err, settled)
	})
}

// scrub has all nodes read all their shards, and returns how many they found damaged
// or missing.
func (x *crashTrial) scrub() (found uint64, err error) {
	via := x.another(x.victim).Config.Home()
	err = x.until(x.victim, "all nodes scrub", func() error {
		scrubs, err := node.StartScrub(context.Background(), via)
		for _, s := range scrubs {
			if s.Error != "" { // it has not begun
				err = fmt.Errorf("%+v", s)
			}
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	err = x.until(x.victim, "all nodes have scrubbed", func() error {
		scrubs, err := node.FetchScrub(context.Background(), via)
		if err != nil {
			return err
		}
		found = 0
		for _, s := range scrubs {
			if s.Error != "" || s.Running {
				return fmt.Errorf("%+v", s)
			}
			found += s.Last.Damaged + s.Last.Missing
		}
		return nil
	})
	return found, err
}

// drain empties the subject and has it take shards again.
func (x *crashTrial) drain() error {
	via, name := x.roles[roleHelper].Config.Home(), x.subject.Config.Name
	if _, err := node.StartDrain(context.Background(), via, name); err != nil {
		return err
	}
	err := x.until(x.victim, "the node is empty", func() error {
		drain, err := node.FetchDrain(context.Background(), via, name)
		if err == nil && (!drain.Draining || drain.Shards > 0) {
			err = fmt.Errorf("drain is %+v", drain)
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = node.CancelDrain(context.Background(), via, name)
	return err
}

// collect deletes the trial's image and has all that only it had collected.
func (x *crashTrial) collect() error {
	if err := x.deleteImage(x.image); err != nil {
		return err
	}
	return x.until(x.victim, "nothing is left to collect", func() error {
		found, err := node.Collect(context.Background(), x.subject.Config.Home(), true)
		if err != nil {
			return err
		}
		due, later := 0, 0
		for _, kind := range found.Garbage {
			if kind.Kind != "upload" { // those that were broken off rest for a day
				due, later = due+kind.Due, later+kind.Later
			}
		}
		if due+later == 0 {
			return nil
		}
		if due > 0 {
			_, err = node.Collect(context.Background(), x.subject.Config.Home(), false)
		}
		return errors.Join(err, fmt.Errorf("%d are due, and %d later", due, later))
	})
}

// deleteImage deletes an image's manifest, which may be gone.
func (x *crashTrial) deleteImage(image string) error {
	for _, acked := range x.Acked() {
		if acked.Repository != image || !acked.Manifest {
			continue
		}
		path := "/v2/" + image + "/manifests/" + acked.Digest
		response, content, err := x.subject.Do("DELETE", path, nil, nil)
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusAccepted && response.StatusCode != http.StatusNotFound {
			return fmt.Errorf("DELETE %s on %s: %s: %s", path, x.subject.Config.Name, response.Status, content)
		}
	}
	x.forgetRepository(image)
	x.images = slices.DeleteFunc(x.images, func(other string) bool { return other == image })
	return nil
}
