package main

import (
	"path/filepath"
	"testing"
)

// killAt is how many bytes have passed when a node is killed, in transfers of
// killLayer bytes.
const (
	killAt    = 6 << 20
	killLayer = 24 << 20
)

// Any node is killed in the middle of a push: the client's own retries do.
func TestKillDuringPush(t *testing.T) {
	requireTool(t, "skopeo")
	c := startDev(t, t.TempDir())
	proxy := startPacedProxy(t, c.host(""))
	var acknowledged []pushed
	for _, victim := range []string{"n1", "n2", "n3"} {
		t.Run(victim, func(t *testing.T) {
			image := makeImage(t, killLayer)
			name := "crane/app:" + victim
			_, err := proxy.during(t, killAt, func() { c.kill(victim) }, program(t, "crane"), "push", image, proxy.address+"/"+name)
			if err != nil {
				t.Fatalf("push while %s was killed: %v", victim, err)
			}
			one := pushed{name, craneDigest(t, c.host(""), name)}
			one.verify(t, c.host(""))
			acknowledged = append(acknowledged, one)
			c.restart(victim)

			// skopeo keeps the manifest of a folder as it is.
			folder := filepath.Join(t.TempDir(), "image")
			command(t, "skopeo", "copy", "docker-archive:"+makeImage(t, killLayer), "dir:"+folder)
			name = "skopeo/app:" + victim
			_, err = proxy.during(t, killAt, func() { c.kill(victim) },
				"skopeo", "copy", "--retry-times=5", "--dest-tls-verify=false", "dir:"+folder, "docker://"+proxy.address+"/"+name)
			if err != nil {
				t.Fatalf("push while %s was killed: %v", victim, err)
			}
			two := pushed{name, craneDigest(t, c.host(""), name)}
			two.verify(t, c.host(""))
			acknowledged = append(acknowledged, two)
			c.restart(victim)
		})
	}
	c.killAllInTurn(acknowledged)
}

// Any node is killed in the middle of a pull. A node that only holds shards is not
// missed by anybody; if the client's own connection breaks, its retries do.
func TestKillDuringPull(t *testing.T) {
	requireTool(t, "skopeo")
	c := startDev(t, t.TempDir())
	image := cranePush(t, c.host(""), "app:one", makeImage(t, killLayer))
	for _, victim := range []string{"n1", "n2", "n3"} {
		for _, through := range []string{"n1", "n2", "n3"} {
			if through == victim {
				continue
			}
			t.Run("shards of "+victim+" through "+through, func(t *testing.T) {
				target := filepath.Join(t.TempDir(), "image.tar")
				direct := startPacedProxy(t, c.host(through))
				_, err := direct.during(t, killAt, func() { c.kill(victim) }, program(t, "crane"), "pull", direct.address+"/"+image.name, target)
				if err != nil {
					t.Fatal(err)
				}
				c.restart(victim)
			})
		}
		t.Run("connection of "+victim, func(t *testing.T) {
			balanced := startPacedProxy(t, c.host(""))
			target := filepath.Join(t.TempDir(), "copy")
			_, err := balanced.during(t, killAt, func() { c.kill(victim) },
				"skopeo", "copy", "--retry-times=5", "--src-tls-verify=false", "docker://"+balanced.address+"/"+image.name, "dir:"+target)
			if err != nil {
				t.Fatal(err)
			}
			verifySkopeoDir(t, target, image.digest)
			c.restart(victim)
		})
	}
	c.killAllInTurn([]pushed{image})
}

// killAllInTurn checks that what was acknowledged survives kill -9 of every node.
func (c *devCluster) killAllInTurn(images []pushed) {
	c.t.Helper()
	for _, victim := range []string{"n1", "n2", "n3"} {
		c.kill(victim)
		for _, image := range images {
			image.verify(c.t, c.host(""))
		}
		c.restart(victim)
	}
	for _, victim := range []string{"n1", "n2", "n3"} { // all of them at once
		c.kill(victim)
	}
	c.restartAll()
	for _, image := range images {
		for _, id := range []string{"n1", "n2", "n3"} {
			image.verify(c.t, c.host(id))
		}
	}
}
