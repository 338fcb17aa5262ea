package mutant

// brokenBlobs are mutants that lose bytes, or give out wrong ones.
func brokenBlobs() []Mutant {
	return append(brokenShards(), brokenExtents()...)
}

func brokenShards() []Mutant {
	return []Mutant{{
		Name:   "shard-no-fsync",
		Breaks: "a shard counts as durable before its bytes are on disk",
		Patches: []Patch{{File: "blobstore/shardwriter.go",
			Old: `	if err := w.disk.calls.sync(w.file); err != nil {
		return w.disk.fault(err)
	}
`, New: ""}},
		Workloads: []string{"images"},
		Nemesis:   "power-all",
		Catches:   "lost: what was pushed in the last seconds has its names and no bytes. With fewer nodes without power parity makes up for it",
	}, {
		Name:   "shard-no-folder-fsync",
		Breaks: "a shard counts as durable before its name is on disk",
		Patches: []Patch{{File: "blobstore/shardwriter.go",
			Old: `	w.disk.handles.forget(w.header.id)
	if err := w.disk.calls.syncDir(filepath.Dir(w.disk.path(w.header.id))); err != nil {
		return w.disk.fault(err)
	}
`,
			New: "\tw.disk.handles.forget(w.header.id)\n"}},
		Workloads: []string{"images"},
		Nemesis:   "power-all",
		Catches: "lost, in few runs: any later fsync of a new file commits ext4's journal, and the name with it, " +
			"so that only the very last pushes are gone, if there were no others at the time",
	}, {
		Name:   "no-cell-checksum",
		Breaks: "what is read from a disk is not compared with its checksums",
		Patches: []Patch{{File: "blobstore/peer.go",
			Old: `	checksums, err := read(ctx, node, run, buf)
	if err != nil {
		return err
	}
	return run.verify(checksums, buf)`,
			New: `	_, err := read(ctx, node, run, buf)
	return err`}},
		Workloads: []string{"images"},
		Nemesis:   "rot-shards",
		Catches:   "wrong bytes",
	}, {
		Name:   "repair-trusts-files",
		Breaks: "a damaged shard counts as repaired if there is a file of its name",
		Patches: []Patch{{File: "blobstore/rebuild.go",
			Old: `	if err := s.disks.renew(id); err != nil {
		return err
	}
	return s.checkShard(ctx, extentID, l, number)`,
			New: `	return s.disks.renew(id)`}},
		Workloads: []string{"images"},
		Nemesis:   "rot-shards",
		Catches: "redundancy not restored: a scrub after the repair finds the same shards damaged again; " +
			"lost, if other shards of the same blobs rot later",
	}}
}

func brokenExtents() []Mutant {
	return []Mutant{{
		Name:   "holders-unchecked",
		Breaks: "nodes are recorded as holders whose shard has failed",
		Patches: []Patch{{File: "blobstore/extentwriter.go",
			Old: `		if h.err != nil {
			extent.Holders = append(extent.Holders, "")
			continue
		}
`, New: ""}},
		Workloads: []string{"images", "uploads"},
		Nemesis:   "kill",
		Catches:   "records without shards: a node comes upon shards that are missing although no disk was touched",
	}, {
		Name:   "parity-short",
		Breaks: "five nodes get one parity shard instead of two, whatever the settings say",
		Patches: []Patch{{File: "blobstore/placement.go",
			Old: "m := parityShards(len(nodes), cfg.Parity)", New: "m := min(1, parityShards(len(nodes), cfg.Parity))"}},
		Workloads: []string{"images"},
		Nemesis:   "none",
		Catches:   "the closing checks: nothing that has more than one data shard can be read without two nodes",
	}, {
		Name:   "degraded-unlisted",
		Breaks: "an extent that was stored with a shard less is not on the list of those to repair",
		Patches: []Patch{{File: "metadata/extent.go",
			Old: `if slices.Contains(e.GetHolders(), "") || len(e.GetDamagedShards()) > 0 {`,
			New: `if len(e.GetDamagedShards()) > 0 {`}},
		Workloads: []string{"images", "uploads"},
		Nemesis:   "kill",
		Catches:   "redundancy not restored: blobs pushed while a node died stay a shard short, and can't be read in the end without two nodes",
	}}
}
