package metadata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// expireLimit is how many records of each kind one command drops.
const expireLimit = 200

// expireWork bounds the work of one command, as change.work counts it: other
// commands wait meanwhile, for some 0.1 s. What is begun is finished, at least one
// record of each kind: an image index with what it lists, a blob with its extents.
const expireWork = 1 << 13

// releaseInterval is the time between two looks for shards of removed nodes, which
// nobody repairs before they are off the records. releaseLimit is how many one
// command takes off.
const (
	releaseInterval = time.Second
	releaseLimit    = 1000
)

// expireRounds bounds the commands of one interval, so that a node that has much
// to drop does not fill the log with it.
const expireRounds = 50

// expire drops what is over its time, oldest first.
func (c *change) expire(command *proto.Expire) error {
	limit := int(command.GetLimit())
	steps := []func() (int, error){
		func() (int, error) { return c.expireUploads(uploadOpen, command.GetUploadsBeforeUnixMs(), limit) },
		func() (int, error) { return c.expireUploads(uploadFinished, command.GetFinishedBeforeUnixMs(), limit) },
		func() (int, error) { return c.expireManifests(command.GetManifestsBeforeUnixMs(), limit) },
		func() (int, error) { return c.expireLinks(command.GetBlobsBeforeUnixMs(), limit) },
		func() (int, error) { return c.expireBlobs(command.GetBlobsBeforeUnixMs(), limit) },
		func() (int, error) { return c.releaseShards(limit) },
		func() (int, error) { return c.expireJoinTokens(limit) },
	}
	for _, step := range steps {
		dropped, err := step()
		if err != nil {
			return err
		}
		c.result.Expired += uint32(dropped)
	}
	return nil
}

// isEnough reports whether an Expire that has dropped some records of a kind leaves
// the others for the next command.
func (c *change) isEnough(dropped int) bool { return dropped > 0 && c.work >= expireWork }

// over returns the ids of at most limit records of a time-ordered bucket that
// are older than before.
func (v view) over(b bucket, prefix string, before int64, limit int) (ids []string, err error) {
	err = v.scan(b, span{prefix: []byte(prefix)}, func(key, _ []byte) error {
		unixMS, id, err := splitTimeKey(key)
		if err != nil {
			return err
		}
		if unixMS >= before || len(ids) == limit {
			return errStop
		}
		ids = append(ids, id)
		return nil
	})
	return ids, err
}

func (c *change) expireUploads(part string, before int64, limit int) (dropped int, err error) {
	ids, err := c.over(bucketUploadsByTime, part, before, limit)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if c.isEnough(dropped) {
			break
		}
		var record proto.UploadRecord
		if err := c.mustRecord(bucketUploads, keyOf(id), &record); err != nil {
			return 0, err
		}
		if err := c.dropUpload(id, &record); err != nil {
			return 0, err
		}
		dropped++
	}
	return dropped, nil
}

// releaseShards takes shards of removed nodes off the records, so that their
// extents count as degraded and can be repaired.
func (c *change) releaseShards(limit int) (int, error) {
	shards, err := c.removedShards(limit)
	if err != nil {
		return 0, err
	}
	for _, s := range shards {
		if err := c.releaseShard(s); err != nil {
			return 0, err
		}
	}
	return len(shards), nil
}

// shard is where one shard is.
type shard struct {
	node     string
	extentID []byte
	number   int
}

func (c *change) releaseShard(s shard) error {
	var record proto.ExtentRecord
	if err := c.mustRecord(bucketExtents, s.extentID, &record); err != nil {
		return err
	}
	holders := record.GetExtent().GetHolders()
	if s.number >= len(holders) || holders[s.number] != s.node {
		return fmt.Errorf("%w: extent %x has no shard %d on node %s", ErrCorrupt, s.extentID, s.number, s.node)
	}
	return c.moveShard(&record, s.number, "")
}

// removedShards returns at most limit shards of removed nodes.
func (v view) removedShards(limit int) (shards []shard, err error) {
	nodes, err := v.nodes()
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		if node.GetState() != proto.NodeState_NODE_STATE_REMOVED || len(shards) == limit {
			continue
		}
		err := v.scan(bucketShardsByNode, span{prefix: keyOf(node.GetId(), "")}, func(id, value []byte) error {
			if len(shards) == limit {
				return errStop
			}
			if len(value) != 4 {
				return fmt.Errorf("%w: shard of extent %x on node %s has no number", ErrCorrupt, id, node.GetId())
			}
			shards = append(shards, shard{node.GetId(), append([]byte(nil), id...), int(binary.BigEndian.Uint32(value))})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return shards, nil
}

// Run drops what is over its time and sees that there are a young signing key and a
// young token key, every StoreConfig.ExpireInterval, and takes shards of removed nodes off the
// records at once, until ctx ends; then it returns nil. One node is enough: the
// leader.
func (s *Store) Run(ctx context.Context) error {
	expire, release := time.NewTicker(s.cfg.ExpireInterval), time.NewTicker(releaseInterval)
	defer expire.Stop()
	defer release.Stop()
	renew, failed := true, false
	for ctx.Err() == nil {
		if renew {
			err := errors.Join(s.renewSigningKey(ctx), s.renewTokenKey(ctx))
			s.logDuty("renew the keys for signing and tokens", 0, err)
			failed = err != nil
		}
		select {
		case <-ctx.Done():
		case <-release.C:
			renew = failed // nobody can log in without the first key
			released, err := s.release(ctx)
			s.logDuty("take shards of removed nodes off the records", released, err)
		case <-expire.C:
			renew = true
			dropped, err := s.Expire(ctx)
			s.logDuty("drop expired records", dropped, err)
		}
	}
	return nil
}

// logDuty logs what was done, if anything was, or why not.
func (s *Store) logDuty(duty string, records int, err error) {
	switch {
	case errors.Is(err, context.Canceled): // The next leader does it.
	case err != nil:
		s.cfg.Logger.Warn().Err(err).Str("duty", duty).Msg("leader's duty not done, trying again later")
	case records > 0:
		s.cfg.Logger.Info().Str("duty", duty).Int("records", records).Msg("leader's duty done")
	}
}

// release takes all shards of removed nodes off the records.
func (s *Store) release(ctx context.Context) (released int, err error) {
	return s.expireBefore(ctx, &proto.Expire{Limit: releaseLimit}, math.MaxInt)
}

// Expire drops records that are over their time now, and tells how many. It
// stops after a bounded number of commands; Run goes on at the next interval.
// Errors: ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) Expire(ctx context.Context) (dropped int, err error) {
	return s.expireBefore(ctx, s.expireNow(), expireRounds)
}

// ExpireAll is Expire until nothing is left that was over its time when it began,
// or ctx ends. On an error, too, it tells how many records went.
func (s *Store) ExpireAll(ctx context.Context) (dropped int, err error) {
	return s.expireBefore(ctx, s.expireNow(), math.MaxInt)
}

// expireBefore proposes the command until it has nothing to do, at most so often.
// Its times stay, so that there is an end: what is put off is so beyond them.
func (s *Store) expireBefore(ctx context.Context, command *proto.Expire, rounds int) (dropped int, err error) {
	for range rounds {
		// The local state will do: what it has not seen waits for the next interval.
		// Proposing blindly would write to the log of an idle cluster for ever.
		due := false
		if err := s.machine.view(func(v view) error {
			due, err = v.expires(command)
			return err
		}); err != nil {
			return dropped, fmt.Errorf("expire records: %w", err)
		}
		if !due {
			break
		}
		result, err := s.propose(ctx, &proto.Command{Body: &proto.Command_Expire{Expire: command}})
		if err != nil {
			return dropped, fmt.Errorf("expire records: %w", err)
		}
		dropped += int(result.GetExpired())
		if result.GetExpired()+result.GetRenewed() == 0 {
			break // this node has not applied yet what another one dropped
		}
	}
	return dropped, nil
}

// expireNow is the command that drops what is over its time now.
func (s *Store) expireNow() *proto.Expire {
	now := s.cfg.Now()
	command := &proto.Expire{
		UploadsBeforeUnixMs:  now.Add(-s.cfg.UploadTTL).UnixMilli(),
		FinishedBeforeUnixMs: now.Add(-s.cfg.FinishedTTL).UnixMilli(),
		BlobsBeforeUnixMs:    now.Add(-s.cfg.BlobGrace).UnixMilli(),
		Limit:                expireLimit,
	}
	if s.cfg.UntaggedAge > 0 {
		command.ManifestsBeforeUnixMs = now.Add(-s.cfg.UntaggedAge).UnixMilli()
	}
	return command
}

// expires reports whether the command would drop anything.
func (v view) expires(command *proto.Expire) (bool, error) {
	for _, kind := range []struct {
		bucket bucket
		prefix string
		before int64
	}{
		{bucketUploadsByTime, uploadOpen, command.GetUploadsBeforeUnixMs()},
		{bucketUploadsByTime, uploadFinished, command.GetFinishedBeforeUnixMs()},
		{bucketUnreferencedLinks, "", command.GetBlobsBeforeUnixMs()},
		{bucketUnreferenced, "", command.GetBlobsBeforeUnixMs()},
		{bucketUntagged, "", manifestsBefore(command)},
	} {
		ids, err := v.over(kind.bucket, kind.prefix, kind.before, 1)
		if err != nil || len(ids) > 0 {
			return len(ids) > 0, err
		}
	}
	shards, err := v.removedShards(1)
	return len(shards) > 0, err
}
