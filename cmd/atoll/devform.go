package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// form waits until the nodes are ready, shows how far they are, and then says
// what to type. It fails if no node is left.
func (d *dev) form(ctx context.Context) error {
	began := time.Now()
	ticker := time.NewTicker(devTick)
	defer ticker.Stop()
	var firstReady time.Time
	shown := ""
	for {
		progress := d.formation()
		if progress.ready > 0 && firstReady.IsZero() {
			firstReady = time.Now()
		}
		if progress.dead == len(d.nodes) {
			return fmt.Errorf("no node has come up: %s", progress.text)
		}
		patience := !firstReady.IsZero() && time.Since(firstReady) > formingPatience
		if progress.ready > 0 && progress.ready+progress.dead == len(d.nodes) || patience {
			d.formed(ctx, time.Since(began))
			return nil
		}
		text := progress.text
		if d.report.terminal {
			text += fmt.Sprintf(" (%.0f s)", time.Since(began).Seconds())
		}
		if text != shown {
			d.report.progress("forming the cluster: " + text)
			shown = text
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		if d.orphaned() {
			return nil
		}
	}
}

// formation is how far the nodes have come.
type formation struct {
	ready, dead int
	text        string
}

func (d *dev) formation() formation {
	var f formation
	var texts []string
	for _, n := range d.nodes {
		running, outcome := n.process.running()
		switch {
		case !running:
			f.dead++
			texts = append(texts, fmt.Sprintf("%s ended (%s), see %s", n.plan.name, outcome, n.logPath()))
		case n.target.get() == readinessFull:
			f.ready++
			texts = append(texts, n.plan.name+" ready")
		case n.target.get() == readinessNone:
			texts = append(texts, n.plan.name+" starting")
		default:
			texts = append(texts, n.plan.name+" waiting for the others")
		}
	}
	f.text = strings.Join(texts, ", ")
	return f
}

// formed tells people what they have and what to type next, and programs that it
// is ready.
func (d *dev) formed(ctx context.Context, took time.Duration) {
	d.report.quiet.Store(false)
	login := d.openDoor(ctx)
	d.report.event(zerolog.InfoLevel, "", fmt.Sprintf("the cluster is ready after %.1f s", took.Seconds()))
	host, program, first := d.plan.host(), programName(d.cfg.executable), d.nodes[0]
	var b strings.Builder
	fmt.Fprintf(&b, "\n  registry  %s   shares requests out over the nodes\n", d.plan.url)
	for _, n := range d.nodes {
		fmt.Fprintf(&b, "  %-8s  %s://%s   pid %d, log %s\n", n.plan.name, d.plan.scheme(), n.plan.registry, n.pid, n.logPath())
	}
	skopeo := "--dest-tls-verify=false"
	if d.plan.auth {
		skopeo = "--dest-cert-dir=" + shellLine([]string{filepath.Dir(d.plan.certificate.CA)})
	}
	fmt.Fprintf(&b, `%[6]s
Push and pull in a second terminal, for example:

  docker pull alpine && docker tag alpine %[1]s/alpine
  docker push %[1]s/alpine
  docker pull %[1]s/alpine
  skopeo copy %[7]s docker://docker.io/library/alpine docker://%[1]s/alpine

See how the cluster is, kill a node, and push and pull again:

  %[2]s status --data %[3]s
  kill -9 %[4]d
  %[5]s

The last line starts that node again. Ctrl-C stops everything.

`, host, program, shellLine([]string{d.plan.dir}), first.pid, shellLine(first.argv), login, skopeo)
	d.report.text(b.String())
}
