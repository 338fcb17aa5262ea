package mutant

// brokenConsensus are mutants that lose or reorder what was acknowledged, or read what
// is not the latest.
func brokenConsensus() []Mutant {
	return append(brokenWrites(), brokenReads()...)
}

func brokenWrites() []Mutant {
	logNoSync := []Patch{{
		File: "consensus/storage.go", Old: "\t\tPath: path,\n\t\tBoltOptions", New: "\t\tPath:   path,\n\t\tNoSync: true,\n\t\tBoltOptions",
	}, {
		File: "consensus/journal.go", Old: "\tif err := datasync(j.file); err != nil {\n\t\treturn err\n\t}\n", New: "",
	}}
	return []Mutant{{
		Name:      "log-no-fsync",
		Breaks:    "entries, terms and votes are acknowledged before they are on disk",
		Patches:   logNoSync,
		Workloads: []string{"register", "images"},
		Nemesis:   "power-all",
		Catches: "lost, not linearizable: a majority forgets the last entries, and so does the state, which was synced before them; " +
			"or a node that does not come back, since it finds its log damaged",
	}, {
		Name:   "metadata-no-fsync",
		Breaks: "neither the log nor the state is on disk when a write is acknowledged",
		Patches: append(logNoSync, Patch{
			File: "metadata/anchor.go", Old: "\terr = m.db.Sync()\n\t// Apply may", New: "\t// Apply may",
		}),
		Workloads: []string{"register", "images"},
		Nemesis:   "power-all",
		Catches:   "lost, not linearizable; or a node that does not come back, since what its anchor tells of is damaged",
	}, {
		Name:   "ack-lost-lead",
		Breaks: "a leader that is deposed answers that the commands under way were carried out",
		Patches: []Patch{{File: "consensus/propose.go",
			Old: `		if err := future.Error(); err != nil {
			answered`,
			New: `		err := future.Error()
		if errors.Is(err, raft.ErrLeadershipLost) { // the entry is in the log
			answered <- answer{outcome: outcome{index: future.Index()}}
			return
		}
		if err != nil {
			answered`}},
		Workloads: []string{"register", "images", "uploads"},
		Nemesis:   "isolate-leader",
		Catches:   "not linearizable, lost: the entries are in no majority's log, and give way to those of the next leader",
	}, {
		Name:   "ack-impatient",
		Breaks: "a write that has not been committed after 300 ms is acknowledged as if it had been",
		Patches: []Patch{{File: "consensus/propose.go",
			Old: `	case <-ctx.Done():
		return outcome{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))`,
			New: `	case <-time.After(300 * time.Millisecond): // a majority has it by now
		return outcome{index: r.raft.LastIndex()}, nil
	case <-ctx.Done():
		return outcome{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))`}},
		Workloads: []string{"register", "images"},
		Nemesis:   "isolate-leader",
		Catches:   "not linearizable, lost: a leader that is cut off leads for 500 ms more",
	}}
}

func brokenReads() []Mutant {
	return []Mutant{{
		Name:   "local-reads",
		Breaks: "a read shows what its node has, without a word of the leader",
		Patches: []Patch{{File: "consensus/read.go",
			Old: "index, err := r.localReads.join(ctx)", New: "index, err := r.raft.CommitIndex(), error(nil)"}},
		Workloads: []string{"register", "quorumless"},
		Nemesis:   "latency",
		Catches:   "not linearizable, and almost at once: followers learn of a commit later than the client does",
	}, {
		Name:   "unconfirmed-leader",
		Breaks: "a leader answers reads without asking whether it still leads",
		Patches: []Patch{{File: "consensus/read.go",
			Old: `	if err := r.confirm(ctx, term); err != nil {
		return 0, err
	}
	if !r.leads(term) {
		return 0, fmt.Errorf("%w any more", ErrNotLeader)
	}
`, New: ""}},
		Workloads: []string{"register", "quorumless"},
		Nemesis:   "pause-leader",
		Catches: "not linearizable, not in every run: a leader that was paused serves the reads that wait for it until its lease is looked at, " +
			"for some milliseconds; so clients that are faithful to it must have asked while it was paused",
	}, {
		Name:   "joined-round",
		Breaks: "a read takes the answer of a round that began before it",
		Patches: []Patch{
			{File: "consensus/read.go",
				Old: "\t\tcurrent := s.next\n\t\ts.next = nil\n", New: "\t\tcurrent := s.next\n"},
			{File: "consensus/read.go",
				Old: "\t\tcancel()\n\t\tclose(current.done)",
				New: "\t\tcancel()\n\t\ts.mu.Lock()\n\t\ts.next = nil\n\t\ts.mu.Unlock()\n\t\tclose(current.done)"},
		},
		Workloads: []string{"register", "quorumless"},
		Nemesis:   "latency",
		Catches:   "not linearizable: what was acknowledged while the round was under way is not seen",
	}}
}
