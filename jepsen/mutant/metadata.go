package mutant

// brokenMetadata are mutants whose records are not what was asked for, or not the same
// on all nodes.
func brokenMetadata() []Mutant {
	return append(brokenCommands(), brokenStates()...)
}

func brokenCommands() []Mutant {
	return []Mutant{{
		Name:   "names-without-quorum",
		Breaks: "tags and lists are read from what the node has when there is no quorum, although nobody has allowed that",
		Patches: []Patch{{File: "metadata/store.go",
			Old: `	if s.cfg.AvailableReads {
		return s.readContent(ctx, read)
	}
	return s.read(ctx, read)`,
			New: `	return s.readContent(ctx, read)`}},
		Workloads: []string{"register", "listing", "quorumless"},
		Nemesis:   "halves",
		Catches:   "not linearizable: who is faithful to a node of the minority sees old tags, 2 s after each request",
	}, {
		Name:   "upload-size-unchecked",
		Breaks: "two writers may continue an upload at the same byte",
		Patches: []Patch{{File: "metadata/upload.go",
			Old: `	if record.GetSize() != command.GetExpectedSize() {
		return refuseSize(command.GetId(), record.GetSize(), command.GetExpectedSize())
	}
`, New: ""}},
		Workloads: []string{"uploads"},
		Nemesis:   "none",
		Catches:   "not linearizable: both get 202 for the same range; wrong bytes, since the hash is that of one of them",
	}, {
		Name:   "if-match-ignored",
		Breaks: "a tag that must point at a certain digest may point at any",
		Patches: []Patch{{File: "metadata/precondition.go",
			Old: `	case len(wanted.GetDigests()) > 0 && !slices.Contains(wanted.GetDigests(), digest):
		return false
`, New: ""}},
		Workloads: []string{"register"},
		Nemesis:   "none",
		Catches:   "not linearizable: of two that swap the same digest both succeed",
	}, {
		Name:   "request-forgotten",
		Breaks: "a command that is proposed again, since its outcome was not known, is carried out again",
		Patches: []Patch{{File: "metadata/request.go",
			Old: "return c.value(bucketRequests, id)", New: "return c.value(bucketRequestOrder, id)"}},
		Workloads: []string{"register", "uploads"},
		Nemesis:   "isolate-leader",
		Catches: "not linearizable: a tag goes back to what it was set to before, or a swap that was carried out is refused; " +
			"refused, for a chunk that the upload has already",
	}, {
		Name:   "marker-forgotten",
		Breaks: "a finished upload leaves no marker, so that its PUT can't be repeated",
		Patches: []Patch{{File: "metadata/upload.go",
			Old: `	return c.putUpload(id, ifStored(record, stored), &proto.UploadRecord{
		Repository:     record.GetRepository(),
		Size:           record.GetSize(),
		CreatedUnixMs:  record.GetCreatedUnixMs(),
		FinishedDigest: digest,
		Owner:          record.GetOwner(),
	})`,
			New: `	if err := c.remove(bucketUploadsByTime, uploadTimeKey(id, record)); err != nil {
		return err
	}
	return c.remove(bucketUploads, keyOf(id))`}},
		Workloads: []string{"uploads"},
		Nemesis:   "kill",
		Catches:   "refused: 404 for a PUT that was carried out, and whose answer was lost",
	}}
}

func brokenStates() []Mutant {
	return []Mutant{{
		Name:   "apply-local-clock",
		Breaks: "a command is carried out with the time of the node that does it",
		Patches: []Patch{
			{File: "metadata/tag.go", Old: "import (\n\t\"context\"\n", New: "import (\n\t\"context\"\n\t\"time\"\n"},
			{File: "metadata/tag.go", Old: "UpdatedUnixMs: c.now})", New: "UpdatedUnixMs: time.Now().UnixMilli()})"},
		},
		Workloads: []string{"register"},
		Nemesis:   "none",
		Catches:   "states differ on nodes, at once; or nodes that stop, if three happen to agree. If all five differ, nobody stops by itself",
	}, {
		Name:   "restore-loses-tags",
		Breaks: "a node that was brought up to date by a snapshot has no tags",
		Patches: []Patch{{File: "metadata/snapshot.go",
			Old: `		return nil, errors.Join(err, db.Close())
	}
	return db, nil
`,
			New: `		return nil, errors.Join(err, db.Close())
	}
	err = db.Update(func(tx *bolt.Tx) error {
		if err := tx.DeleteBucket([]byte(bucketTags)); err != nil {
			return err
		}
		_, err := tx.CreateBucket([]byte(bucketTags))
		return err
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
`}},
		Workloads: []string{"register", "listing"},
		Nemesis:   "wipe",
		Catches: "not linearizable: 404 for tags that are there; states differ on nodes, or the node stops, once a tag is set again. " +
			"It takes a node that comes back behind the log: with the tuning, some seconds of load",
	}}
}
