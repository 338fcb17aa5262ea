package metadata

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	pb "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/atollregistry/atoll/proto"
)

// A command in the log is its protobuf form followed by the CRC32C of it, big
// endian: neither raft-boltdb nor the way to another node checks the bytes.

// maxCommandBytes bounds a command in the log. Large entries hold up the log
// and with it heartbeats; hashicorp/raft suggests at most 512 KiB (api.go,
// SuggestedMaxDataSize). A manifest in its record, its links and its annotations
// fit well.
const maxCommandBytes = 512 << 10

// encodeCommand returns the bytes to propose, or ErrInvalid if they are too many.
func encodeCommand(command *proto.Command) ([]byte, error) {
	encoded, err := encode(command)
	if err != nil {
		return nil, err
	}
	if len(encoded) > maxCommandBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, the log takes at most %d", ErrInvalid, len(encoded), maxCommandBytes)
	}
	return binary.BigEndian.AppendUint32(encoded, checksumOf(encoded)), nil
}

func checksumOf(encoded []byte) uint32 {
	return crc32.Checksum(encoded, crc32.MakeTable(crc32.Castagnoli))
}

// decodeCommand reads a command from the log. A command that this version does
// not understand completely is ErrUnknownCommand: skipping it, or a field of it,
// would make this node's state differ from the others'.
func decodeCommand(data []byte) (*proto.Command, error) {
	if len(data) < crc32.Size {
		return nil, fmt.Errorf("%w: command of %d bytes has no checksum", ErrCorrupt, len(data))
	}
	encoded := data[:len(data)-crc32.Size]
	if checksumOf(encoded) != binary.BigEndian.Uint32(data[len(encoded):]) {
		return nil, fmt.Errorf("%w: command's checksum does not match", ErrCorrupt)
	}
	command := &proto.Command{}
	if err := pb.Unmarshal(encoded, command); err != nil {
		return nil, fmt.Errorf("%w: decode command: %w", ErrCorrupt, err)
	}
	if field := unknownField(command.ProtoReflect()); field != "" {
		return nil, fmt.Errorf("%w: %s has a field that this version does not know; upgrade this node", ErrUnknownCommand, field)
	}
	if command.GetBody() == nil {
		return nil, fmt.Errorf("%w: it is empty", ErrUnknownCommand)
	}
	return command, nil
}

// unknownField returns the name of a message, m or one inside it, that carries
// fields this version does not know; empty if there is none.
func unknownField(m protoreflect.Message) (name string) {
	if len(m.GetUnknown()) > 0 {
		return string(m.Descriptor().FullName())
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Message() == nil || field.IsMap() || !m.Has(field) { // the maps here hold strings
			continue
		}
		if !field.IsList() {
			name = unknownField(m.Get(field).Message())
		} else {
			for list, j := m.Get(field).List(), 0; j < list.Len() && name == ""; j++ {
				name = unknownField(list.Get(j).Message())
			}
		}
		if name != "" {
			return name
		}
	}
	return ""
}

// admit refuses commands that must not be carried out any more.
func (c *change) admit(command *proto.Command) error {
	if len(command.GetRequestId()) != requestIDBytes {
		return invalid("request id has %d bytes, not %d", len(command.GetRequestId()), requestIDBytes)
	}
	if last := command.GetNotAfterIndex(); last != 0 && c.at.logIndex > last {
		return refuse(proto.Refusal_REFUSAL_EXPIRED, "command was good up to log index %d and got %d", last, c.at.logIndex)
	}
	return nil
}

// run is the table of commands. What is checked in them is the same on every
// node and in every version: a rule may only change together with the cluster's
// feature level.
func (c *change) run(command *proto.Command) error {
	switch body := command.GetBody().(type) {
	case *proto.Command_InitCluster:
		return c.initCluster(body.InitCluster)
	case *proto.Command_RecoverCluster:
		return c.recoverCluster(body.RecoverCluster)
	case *proto.Command_PutNode:
		return c.putNode(body.PutNode)
	case *proto.Command_SetNodeState:
		return c.setNodeState(body.SetNodeState)
	case *proto.Command_ExtendUpload:
		return c.extendUpload(body.ExtendUpload)
	case *proto.Command_CancelUpload:
		return c.cancelUpload(body.CancelUpload)
	case *proto.Command_CommitBlob:
		return c.commitBlob(body.CommitBlob)
	case *proto.Command_MountBlob:
		return c.mountBlob(body.MountBlob)
	case *proto.Command_UnlinkBlob:
		return c.unlinkBlob(body.UnlinkBlob)
	case *proto.Command_RenewBlob:
		return c.renewBlob(body.RenewBlob)
	case *proto.Command_PutManifest:
		return c.putManifest(body.PutManifest)
	case *proto.Command_DeleteManifest:
		return c.deleteManifest(body.DeleteManifest)
	case *proto.Command_DeleteTag:
		return c.deleteTag(body.DeleteTag)
	case *proto.Command_RenewManifest:
		return c.renewManifest(body.RenewManifest)
	case *proto.Command_DeleteTagsOf:
		return c.deleteManyTags(body.DeleteTagsOf)
	case *proto.Command_PutSigningKey:
		return c.putSigningKey(body.PutSigningKey)
	case *proto.Command_MoveShards:
		return c.moveShards(body.MoveShards)
	case *proto.Command_ReplaceExtent:
		return c.replaceExtent(body.ReplaceExtent)
	case *proto.Command_ReportShards:
		return c.reportShards(body.ReportShards)
	case *proto.Command_SetLiveness:
		return c.setLiveness(body.SetLiveness)
	case *proto.Command_PutSettings:
		return c.putSettings(body.PutSettings)
	case *proto.Command_AdvanceEra:
		return c.advanceEra(body.AdvanceEra)
	case *proto.Command_Expire:
		return c.expire(body.Expire)
	case *proto.Command_Checkpoint:
		return c.checkpoint(body.Checkpoint)
	default:
		return c.runAccess(command)
	}
}

// runAccess is the part of the table that is about who gets in: clients, and nodes.
func (c *change) runAccess(command *proto.Command) error {
	switch body := command.GetBody().(type) {
	case *proto.Command_PutAccount:
		return c.putAccount(body.PutAccount)
	case *proto.Command_DeleteAccount:
		return c.deleteAccount(body.DeleteAccount)
	case *proto.Command_PutPolicy:
		return c.putPolicy(body.PutPolicy)
	case *proto.Command_PutTokenKey:
		return c.putTokenKey(body.PutTokenKey)
	case *proto.Command_PutAuthority:
		return c.putAuthority(body.PutAuthority)
	case *proto.Command_PutJoinToken:
		return c.putJoinToken(body.PutJoinToken)
	case *proto.Command_RedeemJoinToken:
		return c.redeemJoinToken(body.RedeemJoinToken)
	case *proto.Command_DeleteJoinToken:
		return c.deleteJoinToken(body.DeleteJoinToken)
	case *proto.Command_PutRegistryCertificate:
		return c.putRegistryCertificate(body.PutRegistryCertificate)
	default:
		return fmt.Errorf("%w: %T", ErrUnknownCommand, body)
	}
}
