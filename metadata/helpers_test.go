package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	pb "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

func openMachine(t testing.TB, dir string) *Machine {
	t.Helper()
	m, err := OpenMachine(MachineConfig{Dir: dir, Logger: zerolog.New(zerolog.NewTestWriter(t))})
	if err != nil {
		t.Fatal(err)
	}
	m.anchorGrowth = 64 << 10
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// createUpload begins an upload that has a record and no bytes.
func createUpload(ctx context.Context, s *Store, repository, owner string, ownerLimit int) (*proto.Upload, error) {
	id, err := s.NewUpload(ctx, repository, owner, ownerLimit)
	if err != nil {
		return nil, err
	}
	err = s.ExtendUpload(ctx, &proto.ExtendUpload{
		Id: id, Repository: repository, Begin: &proto.UploadBegin{Owner: owner, OwnerLimit: uint32(ownerLimit)},
	})
	if err != nil {
		return nil, err
	}
	return s.Upload(ctx, repository, id, owner)
}

// begin is a command that begins an upload.
func begin(id, repository, owner string, ownerLimit uint32) *proto.Command {
	return &proto.Command{Body: &proto.Command_ExtendUpload{ExtendUpload: &proto.ExtendUpload{
		Id: id, Repository: repository, Begin: &proto.UploadBegin{Owner: owner, OwnerLimit: ownerLimit, AgeLimitMs: math.MaxInt64},
	}}}
}

// uploadID returns an id of an upload that the owner began, the same for the same name. It was begun in 1970.
func uploadID(name, repository, owner string) string { return uploadIDAt(0, name, repository, owner) }

// uploadIDAt is uploadID for an upload that was begun then.
func uploadIDAt(unixMS int64, name, repository, owner string) string {
	sum := sha256.Sum256([]byte(name))
	id := uuid.UUID(sum[:16])
	copy(id[:], binary.BigEndian.AppendUint64(nil, uint64(unixMS))[8-uploadTimeBytes:])
	id[6], id[8] = uploadIDVersion<<4, 0x80
	check := uploadCheck(id, repository, owner)
	copy(id[len(id)-uploadCheckBytes:], check[:])
	return id.String()
}

// localLog is a log of one node: what is proposed is applied at once.
type localLog struct {
	mu      sync.Mutex
	machine *Machine
	last    uint64
}

func (l *localLog) Propose(_ context.Context, command []byte) ([]byte, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	results, err := l.machine.Apply([]consensus.Entry{{Index: l.last, Term: 1, Data: command}})
	if err != nil {
		return nil, 0, err
	}
	return results[0], l.last, nil
}

func (l *localLog) ReadIndex(context.Context) error { return nil }

// openStore returns a store on a cluster of one node.
func openStore(t testing.TB, cfg StoreConfig) (*Store, *localLog) {
	t.Helper()
	log := &localLog{machine: openMachine(t, t.TempDir())}
	return NewStore(log.machine, log, cfg), log
}

// joinNodes makes nodes of the given ids members.
func joinNodes(t testing.TB, s *Store, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.PutNode(t.Context(), &proto.Node{Id: id, Name: "name-of-" + id}, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// extentOf returns an extent mirrored on the holders.
func extentOf(id string, size uint64, holders ...string) *proto.Extent {
	return &proto.Extent{
		Id: fmt.Appendf(nil, "%-16s", id), Size: size, Holders: holders,
		Layout: &proto.Layout{DataShards: 1, ParityShards: uint32(len(holders) - 1), CellBytes: 4096},
	}
}

// inlineOf returns an inline extent.
func inlineOf(id, content string) *proto.Extent {
	return &proto.Extent{Id: fmt.Appendf(nil, "%-16s", id), Size: uint64(len(content)), Content: []byte(content)}
}

func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// pushBlob commits a blob of one extent whose id is its content.
func pushBlob(t testing.TB, s *Store, repository, content string, holders ...string) string {
	t.Helper()
	err := s.CommitBlob(t.Context(), &proto.CommitBlob{
		Repository: repository, Digest: digestOf(content), Size: 7,
		Extents: []*proto.Extent{extentOf(content, 7, holders...)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return digestOf(content)
}

func manifestOf(content string) *proto.Manifest {
	return &proto.Manifest{
		Digest: digestOf(content), MediaType: "application/vnd.oci.image.manifest.v1+json",
		Size: uint64(len(content)), Content: []byte(content),
	}
}

// entryOf encodes a command as a log entry.
func entryOf(t testing.TB, logIndex uint64, command *proto.Command) consensus.Entry {
	t.Helper()
	data, err := encodeCommand(command)
	if err != nil {
		t.Fatal(err)
	}
	return consensus.Entry{Index: logIndex, Term: 1, Data: data}
}

// requestID makes ids that are all different and easy to read in a dump.
func requestID(n uint64) []byte { return fmt.Appendf(nil, "request-%08d", n) }

// dump writes the state's records, those of the given buckets only if there are
// any given.
func dump(t testing.TB, m *Machine, only ...string) string {
	t.Helper()
	var out strings.Builder
	err := m.view(func(v view) error {
		for _, b := range stateBuckets() {
			if len(only) > 0 && !strings.Contains(" "+strings.Join(only, " ")+" ", " "+string(b)+" ") {
				continue
			}
			header := fmt.Sprintf("%s:\n", b)
			err := v.scan(b, span{}, func(key, value []byte) error {
				out.WriteString(header)
				header = ""
				_, err := fmt.Fprintf(&out, "  %s = %s\n", formatKey(b, key), formatValue(t, b, key, value))
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func formatKey(b bucket, key []byte) string {
	prefix := ""
	switch b {
	case bucketSigningKeys, bucketTokenKeys:
		return fmt.Sprint(binary.BigEndian.Uint32(key))
	case bucketRequestOrder:
		return fmt.Sprint(binary.BigEndian.Uint64(key))
	case bucketUploadsByTime:
		prefix, key = string(key[:1])+" ", key[1:]
		fallthrough
	case bucketUnreferenced, bucketUnreferencedLinks, bucketUntagged:
		unixMS, id, err := splitTimeKey(key)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%s%d %s", prefix, unixMS, strings.ReplaceAll(id, "\x00", " "))
	}
	return strings.TrimSpace(string(bytes.ReplaceAll(key, []byte{separator}, []byte(" "))))
}

func formatValue(t testing.TB, b bucket, key, value []byte) string {
	t.Helper()
	var m pb.Message
	switch b {
	case bucketRepositories:
		m = &proto.Repository{}
	case bucketLinks:
		m = &proto.Link{}
	case bucketManifests:
		m = &proto.Manifest{}
	case bucketTags:
		m = &proto.Tag{}
	case bucketBlobs:
		m = &proto.BlobRecord{}
	case bucketExtents:
		m = &proto.ExtentRecord{}
	case bucketUploads:
		m = &proto.UploadRecord{}
	case bucketNodes:
		m = &proto.Node{}
	case bucketRequests:
		m = &proto.Result{}
	case bucketSigningKeys:
		m = &proto.SigningKey{}
	case bucketShardUsage:
		m = &proto.ShardUsage{}
	case bucketJoinTokens:
		m = &proto.JoinToken{}
	case bucketAccounts:
		m = &proto.Account{}
	case bucketTokenKeys:
		m = &proto.TokenKey{}
	case bucketUploadsByOwner:
		return fmt.Sprint(binary.BigEndian.Uint64(value))
	default:
		if string(key) == keySettings {
			m = &proto.Settings{}
			break
		}
		if string(key) == keyAuthority {
			m = &proto.ClusterAuthority{}
			break
		}
		if string(key) == keyRegistryCertificate {
			m = &proto.RegistryCertificate{}
			break
		}
		if string(key) == keyPolicy {
			m = &proto.Policy{}
			break
		}
		if len(value) == 8 && b == bucketCluster {
			return fmt.Sprint(binary.BigEndian.Uint64(value))
		}
		return fmt.Sprintf("%q", value)
	}
	if err := decode(b, key, value, m); err != nil {
		t.Fatal(err)
	}
	return formatMessage(m.ProtoReflect())
}

// formatMessage writes a message on one line, with its fields in order. The
// library's own text form differs between builds on purpose.
func formatMessage(m protoreflect.Message) string {
	var fields []string
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		number := fmt.Sprintf("%04d", field.Number())
		switch {
		case field.IsList():
			var items []string
			for i := range value.List().Len() {
				items = append(items, formatField(field, value.List().Get(i)))
			}
			fields = append(fields, fmt.Sprintf("%s%s=[%s]", number, field.Name(), strings.Join(items, ",")))
		case field.IsMap():
			var items []string
			value.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				items = append(items, fmt.Sprintf("%s:%q", key, value.String()))
				return true
			})
			sort.Strings(items)
			fields = append(fields, fmt.Sprintf("%s%s={%s}", number, field.Name(), strings.Join(items, ",")))
		default:
			fields = append(fields, fmt.Sprintf("%s%s=%s", number, field.Name(), formatField(field, value)))
		}
		return true
	})
	sort.Strings(fields)
	for i, field := range fields {
		fields[i] = field[4:]
	}
	return "{" + strings.Join(fields, " ") + "}"
}

func formatField(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	switch field.Kind() {
	case protoreflect.MessageKind:
		return formatMessage(value.Message())
	case protoreflect.BytesKind:
		return fmt.Sprintf("%q", bytes.TrimSpace(value.Bytes()))
	case protoreflect.EnumKind:
		return string(field.Enum().Values().ByNumber(value.Enum()).Name())
	case protoreflect.StringKind:
		return fmt.Sprintf("%q", value.String())
	default:
		return value.String()
	}
}

// compacted opens a copy of a machine's state without its free pages.
func compacted(t testing.TB, m *Machine) *Machine {
	t.Helper()
	dir := t.TempDir()
	db, err := bolt.Open(filepath.Join(dir, stateFile), 0o600, &bolt.Options{PageSize: pageBytes})
	if err == nil {
		err = errors.Join(bolt.Compact(db, m.db, 0), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return openMachine(t, dir)
}

// copyState copies the database of a machine that is not being written to, as it would be
// closed, without the room that bbolt has made for growth. harm, if
// given, changes it.
func copyState(t testing.TB, from *Machine, harm func(content []byte) []byte) (to string) {
	t.Helper()
	to = t.TempDir()
	var content []byte
	err := from.applyAlone(func() error { // nor synced meanwhile
		tx, err := from.beginWholeAlone()
		if err != nil {
			return err
		}
		file, err := os.Open(filepath.Join(from.cfg.Dir, stateFile))
		if err == nil {
			content, err = io.ReadAll(io.LimitReader(file, tx.Size()))
			err = errors.Join(err, file.Close())
		}
		return errors.Join(err, tx.Rollback())
	})
	if err != nil {
		t.Fatal(err)
	}
	if harm != nil {
		content = harm(content)
	}
	if err := os.WriteFile(filepath.Join(to, stateFile), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}
