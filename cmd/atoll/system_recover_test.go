package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// recover runs atoll recover with the settings of a node.
func (c *devCluster) recover(id string, flags ...string) (string, error) {
	c.t.Helper()
	argv := c.node(id).Argv // atoll serve --...
	argv = append([]string{argv[0], "recover"}, argv[2:]...)
	return tryCommand(c.t, append(argv, flags...)...)
}

// mustRecover is recover that has to end well and to say some words.
func (c *devCluster) mustRecover(words, id string, flags ...string) {
	c.t.Helper()
	out, err := c.recover(id, flags...)
	if err != nil {
		c.t.Fatal(err)
	}
	if !strings.Contains(out, words) {
		c.t.Errorf("recover of %s does not say %q:\n%s", id, words, out)
	}
}

// Kill -9 of all nodes, and the disk of one is lost. What an operator reads in
// docs/recover.md brings the cluster back without the loss of anything.
func TestRecover(t *testing.T) {
	dir := t.TempDir()
	c := startDev(t, dir)
	images := []pushed{
		cranePush(t, c.host(""), "app:one", makeImage(t, 5<<20)),
		cranePush(t, c.host(""), "app:two", makeImage(t, 300<<10)),
	}
	if out, err := c.recover("n1", "--yes"); err == nil || !strings.Contains(out, "in use by another atoll process") {
		t.Errorf("a node that runs is recovered: %v\n%s", err, out)
	}
	c.kill("n1")
	c.kill("n3")
	if err := os.RemoveAll(filepath.Join(dir, "n3")); err != nil {
		t.Fatal(err)
	}
	if out, err := c.recover("n1", "--yes"); err == nil || !strings.Contains(out, "node n2 at "+c.node("n2").Cluster+" runs") {
		t.Errorf("a node is recovered while another runs: %v\n%s", err, out)
	}
	c.kill("n2")
	c.mustRecover("Nothing was changed", "n1")
	c.mustRecover("This node belongs to cluster", "n1", "--yes")
	c.restart("n1")

	c.startByHand("n2")
	former := c.byHand["n2"]
	err := former.cmd.Wait()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != exitRemoved || !strings.Contains(former.log.String(), "run 'atoll recover --rejoin'") {
		t.Errorf("a node of the cluster as it was ended with %v:\n%s", err, former.log)
	}
	c.mustRecover("Start this node now", "n2", "--rejoin", "--yes")
	c.restart("n2")
	for _, image := range images {
		image.verify(t, c.host("n1"))
		image.verify(t, c.host("n2"))
	}
	c.restart("n3")
	c.waitHealthy()
	for _, image := range append(images, cranePush(t, c.host("n3"), "app:three", makeImage(t, 1<<20))) {
		image.verify(t, c.host("n3"))
	}
}
