package main

import (
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// killAt is how many bytes have passed when a node is killed, in transfers of
// killLayer bytes: enough that the rest does not fit into buffers on the way.
const (
	killAt    = 6 << 20
	killLayer = 48 << 20
)

// neighbours are pairs of a node that a client talks to, and another one.
func neighbours() [][2]string {
	return [][2]string{{"n1", "n2"}, {"n2", "n3"}, {"n3", "n1"}}
}

// A node is killed in the middle of a push. If it is one that gets shards or that
// leads, no client notices; if it is the one that the client talks to, the client's
// own retry does.
func TestKillDuringPush(t *testing.T) {
	requireTool(t, "skopeo")
	c := startDev(t, t.TempDir())
	balanced := startPacedProxy(t, c.host(""))
	var acknowledged []pushed
	push := func(name, host string, argv []string, proxy *pacedProxy, victim func() string) {
		t.Run(name, func(t *testing.T) {
			killed := ""
			if _, err := proxy.during(t, killAt, func() { killed = victim(); c.kill(killed) }, argv...); err != nil {
				t.Fatalf("push while %s was killed: %v", killed, err)
			}
			image := pushed{name, craneDigest(t, host, name)}
			image.verify(t, host)
			acknowledged = append(acknowledged, image)
			c.restart(killed)
		})
	}
	crane := program(t, "crane")
	push("crane/app:receiver", c.host(""), []string{crane, "push", makeImage(t, killLayer), balanced.address + "/crane/app:receiver"},
		balanced, func() string { return c.busy("uploads") })
	push("crane/app:leader", c.host(""), []string{crane, "push", makeImage(t, killLayer), balanced.address + "/crane/app:leader"},
		balanced, c.leader)
	for _, pair := range neighbours() {
		direct := startPacedProxy(t, c.host(pair[0]))
		name := "skopeo/app:" + pair[0]
		folder := filepath.Join(t.TempDir(), "image")
		command(t, "skopeo", "copy", "docker-archive:"+makeImage(t, killLayer), "dir:"+folder)
		push(name, c.host(pair[0]), []string{"skopeo", "copy", "--dest-tls-verify=false", "dir:" + folder, "docker://" + direct.address + "/" + name},
			direct, func() string { return pair[1] })
	}
	if !t.Failed() {
		c.killAll(acknowledged)
	}
}

// A node is killed in the middle of a pull. A node that only holds shards is not
// missed by any client.
func TestKillDuringPull(t *testing.T) {
	requireTool(t, "skopeo")
	// The bytes must come through the proxy, which sees how far a pull is.
	c := startDev(t, t.TempDir(), "--set=registry.redirect=off")
	image := cranePush(t, c.host(""), "app:one", makeImage(t, killLayer))
	for _, pair := range neighbours() {
		through, victim := pair[0], pair[1]
		t.Run("crane through "+through+" without "+victim, func(t *testing.T) {
			direct := startPacedProxy(t, c.host(through))
			target := filepath.Join(t.TempDir(), "image.tar")
			_, err := direct.during(t, killAt, func() { c.kill(victim) }, program(t, "crane"), "pull", direct.address+"/"+image.name, target)
			if err != nil {
				t.Fatal(err)
			}
			c.restart(victim)
		})
		t.Run("skopeo through "+through+" without "+victim, func(t *testing.T) {
			direct := startPacedProxy(t, c.host(through))
			target := filepath.Join(t.TempDir(), "copy")
			_, err := direct.during(t, killAt, func() { c.kill(victim) },
				"skopeo", "copy", "--src-tls-verify=false", "docker://"+direct.address+"/"+image.name, "dir:"+target)
			if err != nil {
				t.Fatal(err)
			}
			verifySkopeoDir(t, target, image.digest)
			c.restart(victim)
		})
	}
	if !t.Failed() {
		c.killAll([]pushed{image})
	}
}

// killAll checks that what was acknowledged survives kill -9 of every node, one
// after the other and all at once.
func (c *devCluster) killAll(images []pushed) {
	c.t.Helper()
	for _, victim := range []string{"n1", "n2", "n3"} {
		c.kill(victim)
		for _, image := range images {
			image.verify(c.t, c.host(""))
		}
		c.restart(victim)
	}
	for _, victim := range []string{"n1", "n2", "n3"} {
		c.kill(victim)
	}
	c.restartAll()
	for _, image := range images {
		for _, id := range []string{"n1", "n2", "n3"} {
			image.verify(c.t, c.host(id))
		}
	}
}

// busy names the node that serves a transfer right now: of uploads or of pulls.
func (c *devCluster) busy(limit string) string {
	c.t.Helper()
	inUse := regexp.MustCompile(`(?m)^atoll_gateway_limit_in_use\{limit="` + limit + `"\} ([1-9])`)
	found := ""
	eventually(c.t, 10*time.Second, "a node is busy with "+limit, func() bool {
		for _, n := range c.file().Nodes {
			response, err := http.Get(n.Operations + "/metrics")
			if err != nil {
				continue
			}
			content, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err == nil && inUse.Match(content) {
				found = n.ID
				return true
			}
		}
		return false
	})
	return found
}
