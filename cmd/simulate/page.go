package main

import (
	_ "embed"
	"fmt"
	"math/rand/v2"
	"strings"
	"text/template"
)

//go:embed page.md
var pageText string

// policies are what the page compares, the one of atoll first.
var policies = []policy{
	{name: "atoll's", redirect: true, hot: true},
	{name: "homes keep what they are asked for once", redirect: true, hot: true, eager: true},
	{name: "nothing is hot", redirect: true},
	{name: "no redirects"},
}

// sizes are the clusters of the page, by number of nodes.
var sizes = []int{3, 5, 10, 30, 100}

// page returns docs/scale.md.
func page(seed uint64) (string, error) {
	functions := template.FuncMap{
		"days":     func() (string, error) { return table(seed, steadyHead, sizes, steadyRow) },
		"policies": func() (string, error) { return policyTable(seed, 10) },
		"rollouts": func() (string, error) { return table(seed, rolloutHead, sizes, rolloutRow) },
		"repairs":  func() (string, error) { return table(seed, repairHead, sizes, repairRow) },
		"seed":     func() uint64 { return seed },
	}
	parsed, err := template.New("page").Funcs(functions).Parse(pageText)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = parsed.Execute(&b, nil)
	return b.String(), err
}

// randomOf returns what is random in one simulation: the same for each seed and cluster, whatever ran before.
func randomOf(seed uint64, nodes int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(nodes))) }

// table returns a table with a row for each size of the cluster.
func table(seed uint64, head string, sizes []int, row func(*rand.Rand, int) (string, error)) (string, error) {
	rows := []string{head}
	for _, nodes := range sizes {
		cells, err := row(randomOf(seed, nodes), nodes)
		if err != nil {
			return "", fmt.Errorf("%d nodes: %w", nodes, err)
		}
		rows = append(rows, fmt.Sprintf("| %d | %s |", nodes, cells))
	}
	return strings.Join(rows, "\n"), nil
}

const steadyHead = `| nodes | served from a cache, % of bytes | redirected, % of pulls | between nodes, bytes a byte pulled | shards read | written to caches | busiest node, of the mean | ceiling, GB/s | GB/s a node |
|-|-|-|-|-|-|-|-|-|`

func steadyRow(random *rand.Rand, nodes int) (string, error) {
	r, err := steady(random, nodes, policies[0])
	return r.cells(nodes), err
}

func (r steadyResult) cells(nodes int) string {
	return fmt.Sprintf("%.0f | %.0f | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f",
		100*r.hit, 100*r.away, r.between, r.disk, r.kept, r.imbalance, r.ceiling/1e9, r.ceiling/1e9/float64(nodes))
}

func policyTable(seed uint64, nodes int) (string, error) {
	rows := []string{strings.Replace(steadyHead, "nodes", "policy", 1)}
	for _, p := range policies {
		r, err := steady(randomOf(seed, nodes), nodes, p)
		if err != nil {
			return "", fmt.Errorf("%s: %w", p.name, err)
		}
		rows = append(rows, fmt.Sprintf("| %s | %s |", p.name, r.cells(nodes)))
	}
	return strings.Join(rows, "\n"), nil
}

const rolloutHead = `| nodes | done after, s | what the links need, s | ratio | with nothing hot, s | without redirects, s | nodes that read a layer's shards, mean | between nodes, bytes a byte pulled | busiest node, of the mean |
|-|-|-|-|-|-|-|-|-|`

// rollouts is how many roll-outs a row is the mean of.
const rollouts = 5

func rolloutRow(random *rand.Rand, nodes int) (string, error) {
	seed := random.Uint64()
	var results []rolloutResult
	for _, p := range []policy{policies[0], policies[2], policies[3]} {
		var mean rolloutResult
		for i := range uint64(rollouts) {
			r, err := roll(rand.New(rand.NewPCG(seed, i)), nodes, p)
			if err != nil {
				return "", err
			}
			mean.add(r, 1.0/rollouts)
		}
		results = append(results, mean)
	}
	r := results[0]
	return fmt.Sprintf("%.1f | %.1f | %.2f | %.1f | %.1f | %.1f | %.2f | %.2f",
		r.seconds, r.least, r.seconds/r.least, results[1].seconds, results[2].seconds, r.reads, r.between, r.imbalance), nil
}

const repairHead = `| nodes | at the default pace | as fast as links and disks allow | read, bytes a byte lost | busiest node, of the mean | stored anew in fewer shards, % |
|-|-|-|-|-|-|`

func repairRow(random *rand.Rand, nodes int) (string, error) {
	r, err := repair(random, nodes, lostShards)
	return fmt.Sprintf("%s | %s | %.1f | %.2f | %.0f", hours(r.paced), hours(r.free), r.read, r.imbalance, 100*r.anew), err
}

// hours writes a time in the unit that fits.
func hours(seconds float64) string {
	if seconds < 3600 {
		return fmt.Sprintf("%.0f min", seconds/60)
	}
	return fmt.Sprintf("%.1f h", seconds/3600)
}
