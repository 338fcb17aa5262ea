package mutant

// brokenGateway are mutants that answer clients wrongly from records that are right.
func brokenGateway() []Mutant {
	return []Mutant{{
		Name:   "multitag-stepwise",
		Breaks: "the tags of one PUT are moved one after the other",
		Patches: []Patch{{File: "gateway/manifest.go",
			Old: `	if err := g.metadata.PutManifest(ctx, put); err != nil {
		return fmt.Errorf("put manifest %s: %w", manifest.Digest, err)
	}
`,
			New: `	for i := range max(1, len(tags)) {
		put.Tags = tags[min(i, len(tags)):min(i+1, len(tags))]
		if err := g.metadata.PutManifest(ctx, put); err != nil {
			return fmt.Errorf("put manifest %s: %w", manifest.Digest, err)
		}
	}
`}},
		Workloads: []string{"multitag"},
		Nemesis:   "kill",
		Catches:   "torn: readers meet some of the tags moved, and after a kill on the way it stays so",
	}, {
		Name:   "listing-skips",
		Breaks: "the next page of tags begins one too late",
		Patches: []Patch{
			{File: "gateway/list.go",
				Old: "g.metadata.Tags(watched, x.repository, p.after, p.limit())",
				New: "g.metadata.Tags(watched, x.repository, p.after, p.limit()+1)"},
			{File: "gateway/list.go",
				Old: "\t\tx.linkNext(\"/v2/\"+x.repository+\"/tags/list\", next)\n",
				New: "\t\tx.linkNext(\"/v2/\"+x.repository+\"/tags/list\", next)\n\t\ttags = tags[:len(tags)-1]\n"},
		},
		Workloads: []string{"listing"},
		Nemesis:   "none",
		Catches:   "lost or not linearizable: a tag that was there all the time is on no page. It takes lists of several pages",
	}}
}
