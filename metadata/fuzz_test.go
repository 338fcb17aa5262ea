package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// FuzzDecodeCommand: whatever is in the log, it is understood completely or
// refused, and what was understood is what was written.
func FuzzDecodeCommand(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 2, 3, 4, 5})
	for _, command := range commandsOfAllKinds(f) {
		f.Add(entryOf(f, 1, command).Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, data := range [][]byte{data, withChecksum(data)} {
			command, err := decodeCommand(data)
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknownCommand) {
					t.Fatalf("error is %v", err)
				}
				continue
			}
			again, err := decodeCommand(withChecksum(mustEncode(t, command)))
			if err != nil || !pb.Equal(again, command) {
				t.Fatalf("%v became %v (%v)", command, again, err)
			}
		}
	})
}

// FuzzApply: no command of the right form, however senseless, ends a node or
// breaks an invariant.
func FuzzApply(f *testing.F) {
	for _, command := range commandsOfAllKinds(f) {
		text, err := prototext.Marshal(command)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var command proto.Command
		if err := prototext.Unmarshal(text, &command); err != nil || command.GetBody() == nil {
			t.Skip()
		}
		m := openMachine(t, t.TempDir())
		var entries []consensus.Entry
		for i, command := range append(commandsOfAllKinds(t), &command, &command) {
			command.RequestId = requestID(uint64(i))
			data := withChecksum(mustEncode(t, command))
			entries = append(entries, consensus.Entry{Index: uint64(i + 1), Term: 1, Data: data})
		}
		if _, err := m.Apply(entries); err != nil {
			t.Fatal(err)
		}
		checkInvariants(t, m)
	})
}

// commandsOfAllKinds are one command of each kind, in an order in which most are
// carried out.
func commandsOfAllKinds(t testing.TB) (commands []*proto.Command) {
	t.Helper()
	for _, text := range []string{
		`init_cluster { cluster_id: "c" }`,
		`put_node { node { id: "n1" name: "one" } }`,
		`put_node { node { id: "n2" name: "two" } }`,
		`put_node { node { id: "n3" name: "two" } replaces_id: "n2" }`,
		`set_node_state { id: "n3" state: NODE_STATE_DRAINING }`,
		"extend_upload { id: \"" + uploadID("u1", "r", "") + "\" repository: \"r\" begin { age_limit_ms: 100000000 } }",
		`extend_upload { id: "` + uploadID("u1", "r", "") + `" repository: "r" extents { id: "extent-000000001" size: 3 layout { data_shards: 1 parity_shards: 1 cell_bytes: 1 } holders: ["n1", ""] } }`,
		`commit_blob { repository: "r" digest: "d1" size: 3 upload_id: "` + uploadID("u1", "r", "") + `" expected_size: 3 }`,
		`mount_blob { repository: "s" digest: "d1" from: "r" }`,
		`unlink_blob { repository: "s" digest: "d1" }`,
		"extend_upload { id: \"" + uploadID("u4", "r", "") + "\" repository: \"r\" begin { age_limit_ms: 100000000 } }",
		`extend_upload { id: "` + uploadID("u4", "r", "") + `" repository: "r" extents { id: "extent-000000006" size: 3 content: "abc" } }`,
		`commit_blob { repository: "r" digest: "d5" size: 7 upload_id: "` + uploadID("u4", "r", "") + `" expected_size: 3 extents { id: "extent-000000007" size: 4 content: "defg" } }`,
		"extend_upload { id: \"" + uploadID("u2", "r", "") + "\" repository: \"r\" begin { age_limit_ms: 100000000 } }",
		`cancel_upload { id: "` + uploadID("u2", "r", "") + `" repository: "r" }`,
		`put_manifest { repository: "r" tags: "v1" manifest { digest: "d2" media_type: "m" size: 2 stored_as_blob: true subject: "d3" blobs { digest: "d1" } } extents { id: "extent-000000002" size: 2 layout { data_shards: 1 cell_bytes: 1 } holders: "n3" } }`,
		`renew_blob { repository: "r" digest: "d1" }`,
		`renew_manifest { repository: "r" digest: "d2" }`,
		`put_signing_key { key { id: 1 secret: "0123456789abcdef0123456789abcdef" } }`,
		`put_manifest { repository: "r" manifest { digest: "d2" media_type: "m" size: 2 stored_as_blob: true manifests { digest: "d4" } optional_blobs { digest: "d1" } } extents { id: "extent-000000003" size: 2 layout { data_shards: 1 cell_bytes: 1 } holders: "n3" } precondition { exists: true digests: "d2" not_digests: "d3" } }`,
		`put_manifest { repository: "r" tags: "v1" manifest { digest: "d2" media_type: "m" size: 2 stored_as_blob: true } extents { id: "extent-000000004" size: 2 layout { data_shards: 1 cell_bytes: 1 } holders: "n3" } precondition { missing: true } }`,
		`delete_tags_of { repository: "r" digest: "d2" limit: 1 precondition { exists: true } }`,
		`commit_blob { repository: "r" digest: "d1" size: 3 extents { id: "extent-000000005" size: 3 layout { data_shards: 1 cell_bytes: 1 } holders: "n3" } }`,
		`delete_tag { repository: "r" tag: "v1" }`,
		`delete_manifest { repository: "r" digest: "d2" }`,
		`expire { limit: 9 }`,
		`expire { limit: 9 blobs_before_unix_ms: 9000 manifests_before_unix_ms: 9000 }`,
		`advance_era {}`,
		`checkpoint {}`,
		"extend_upload { id: \"" + uploadID("u3", "r", "user:alice") + "\" repository: \"r\" begin { owner: \"user:alice\" owner_limit: 1 age_limit_ms: 100000000 } }",
		`put_account { account { name: "alice" kind: ACCOUNT_KIND_USER groups: "g" password_hash: "$2a$" } }`,
		`put_account { account { name: "ci" kind: ACCOUNT_KIND_ROBOT secrets { id: "s1" sha256: "0123456789abcdef0123456789abcdef" expires_unix_ms: 5000 } } }`,
		`delete_account { name: "ci" }`,
		`put_policy { policy { rules { repositories: "**" subjects: "user:alice" rights: "push" } immutable { repositories: "**" tags: "v*" } text: "rules" } }`,
		`put_token_key { key { id: 1 seed: "0123456789abcdef0123456789abcdef" } }`,
		`put_authority { authority { certificates { der: "a" key: "k" } } }`,
		`put_authority { authority { certificates { der: "a" key: "k" } certificates { der: "b" key: "k" } } previous_revision: 1 }`,
		`put_join_token { token { id: "t1" sha256: "0123456789abcdef0123456789abcdef" uses: 1 expires_unix_ms: 5000 } }`,
		`redeem_join_token { id: "t1" sha256: "0123456789abcdef0123456789abcdef" use { node_id: "n4" node_name: "four" key_sha256: "0123456789abcdef0123456789abcdef" } }`,
		`put_join_token { token { id: "t2" sha256: "0123456789abcdef0123456789abcdef" uses: 2 expires_unix_ms: 6000 } }`,
		`delete_join_token { id: "t2" }`,
		`put_registry_certificate { certificate { directory: "d" account_key: "k" challenges { domain: "a.example" token: "t" } } }`,
		`put_registry_certificate { certificate { directory: "d" account_key: "k" chain: "c" key: "k" } previous_revision: 1 }`,
	} {
		command := &proto.Command{TimeUnixMs: 1000}
		if err := prototext.Unmarshal([]byte(text), command); err != nil {
			t.Fatal(err)
		}
		commands = append(commands, command)
	}
	return commands
}

// FuzzRestore: whatever comes over the network, the state is whole afterwards.
func FuzzRestore(f *testing.F) {
	f.Add([]byte{})
	f.Add(snapshotHeader{logIndex: 1 << 40, databaseBytes: 100}.encode())
	f.Add(snapshotOf(f, makeHistory(f, 30, 20).machine))
	f.Fuzz(func(t *testing.T, content []byte) {
		m := openMachine(t, t.TempDir())
		err := m.Restore(bytes.NewReader(content))
		if verifyErr := m.Verify(); verifyErr != nil {
			t.Fatalf("after %v: %v", err, verifyErr)
		}
	})
}

func withChecksum(encoded []byte) []byte {
	return binary.BigEndian.AppendUint32(bytes.Clone(encoded), checksumOf(encoded))
}

func mustEncode(t testing.TB, command *proto.Command) []byte {
	t.Helper()
	encoded, err := encode(command)
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}
