package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// Join tokens let nodes in that have no certificate yet. Every one ends, by its time
// and by its uses: one that is forgotten in a script is no way in next year.

const (
	// MaxJoinTokenTTL is how long a join token may be good for.
	MaxJoinTokenTTL = 30 * 24 * time.Hour
	// MaxJoinTokenUses is how many nodes one may let in.
	MaxJoinTokenUses = 100
	// maxJoinTokens bounds how many there are, those that are over included.
	maxJoinTokens = 1000
	// maxDescriptionBytes bounds what an operator writes about one.
	maxDescriptionBytes = 256
	// joinTokenKept is how long a token is shown, and says that it is expired, once it is.
	joinTokenKept = 7 * 24 * time.Hour
)

// putJoinToken adds a token.
func (c *change) putJoinToken(command *proto.PutJoinToken) error {
	token := command.GetToken()
	lifetime := token.GetExpiresUnixMs() - c.now
	switch {
	case !isName(token.GetId()) || len(token.GetSha256()) != sha256.Size:
		return invalid("join token %q with a hash of %d bytes", token.GetId(), len(token.GetSha256()))
	case token.GetUses() < 1 || token.GetUses() > MaxJoinTokenUses:
		return invalid("join token for %d nodes, not 1 to %d", token.GetUses(), MaxJoinTokenUses)
	case token.GetExpiresUnixMs() <= c.now || lifetime > MaxJoinTokenTTL.Milliseconds():
		return invalid("join token for %d ms, which is not more than 0 and at most %d", lifetime, MaxJoinTokenTTL.Milliseconds())
	case len(token.GetDescription()) > maxDescriptionBytes:
		return invalid("description of %d bytes, more than %d", len(token.GetDescription()), maxDescriptionBytes)
	}
	if err := c.checkTokenMember(token); err != nil {
		return err
	}
	known, more, err := c.rests(bucketJoinTokens, span{}, maxJoinTokens-1)
	if err != nil {
		return err
	}
	if more {
		return invalid("there are %d join tokens already: revoke some", len(known)+1)
	}
	if found, err := c.has(bucketJoinTokens, keyOf(token.GetId())); err != nil || found {
		if err == nil {
			err = refuse(proto.Refusal_REFUSAL_CHANGED, "there is a join token %s", token.GetId())
		}
		return err
	}
	return c.put(bucketJoinTokens, keyOf(token.GetId()), &proto.JoinToken{
		Id: token.GetId(), Sha256: token.GetSha256(), CreatedUnixMs: c.now, ExpiresUnixMs: token.GetExpiresUnixMs(),
		Uses: token.GetUses(), Description: token.GetDescription(), Member: token.GetMember(),
	})
}

// checkTokenMember refuses a token for a member that there is none of.
func (c *change) checkTokenMember(token *proto.JoinToken) error {
	if token.GetMember() == "" {
		return nil
	}
	if token.GetUses() != 1 {
		return invalid("join token for node %q alone, with %d uses", token.GetMember(), token.GetUses())
	}
	nodes, err := c.nodes()
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if node.GetName() == token.GetMember() && node.GetState() != proto.NodeState_NODE_STATE_REMOVED {
			return nil
		}
	}
	return refuse(proto.Refusal_REFUSAL_NODE_UNKNOWN, "no member has the name %q", token.GetMember())
}

// redeemJoinToken uses a token up by one. The same node with the same key may ask again
// for as long as the token is good, used up or not: the first answer may not have reached
// it. It may not for longer: who never joins is in no list, and could not be removed.
func (c *change) redeemJoinToken(command *proto.RedeemJoinToken) error {
	use := command.GetUse()
	if !isName(use.GetNodeId()) || !isName(use.GetNodeName()) || len(use.GetKeySha256()) != sha256.Size {
		return invalid("join token used by node %q with the name %q", use.GetNodeId(), use.GetNodeName())
	}
	var token proto.JoinToken
	found, err := c.record(bucketJoinTokens, keyOf(command.GetId()), &token)
	if err != nil {
		return err
	}
	if !found || !isSecretOf(&token, command.GetSha256()) {
		return refuse(proto.Refusal_REFUSAL_JOIN_TOKEN, "there is no such token with such a secret")
	}
	earlier := slices.ContainsFunc(token.GetUsed(), func(earlier *proto.JoinTokenUse) bool {
		return earlier.GetNodeId() == use.GetNodeId() && bytes.Equal(earlier.GetKeySha256(), use.GetKeySha256())
	})
	switch err := c.checkEnrolling(&token, use, earlier); {
	case err != nil:
		return err
	case c.now >= token.GetExpiresUnixMs():
		return refuse(proto.Refusal_REFUSAL_JOIN_TOKEN, "token %s is expired since %s", token.GetId(), time.UnixMilli(token.GetExpiresUnixMs()).UTC().Format(time.RFC3339))
	case earlier:
		return nil
	case token.GetUses() == 0:
		return refuse(proto.Refusal_REFUSAL_JOIN_TOKEN, "token %s is used up", token.GetId())
	}
	token.Uses--
	token.Used = append(token.Used, &proto.JoinTokenUse{
		NodeId: use.GetNodeId(), NodeName: use.GetNodeName(), KeySha256: use.GetKeySha256(), UsedUnixMs: c.now,
	})
	return c.put(bucketJoinTokens, keyOf(token.GetId()), &token)
}

// isSecretOf compares in constant time.
func isSecretOf(token *proto.JoinToken, sum []byte) bool {
	return subtle.ConstantTimeCompare(token.GetSha256(), sum) == 1
}

// checkEnrolling refuses a node that was removed, whose name is another in the records,
// since an id never changes its name, or that the token is not for. A token for new nodes
// lets no member back in: whoever has stolen one must not become a node that the others
// know, with its vote and its shards.
func (c *change) checkEnrolling(token *proto.JoinToken, use *proto.JoinTokenUse, earlier bool) error {
	var node proto.Node
	isMember, err := c.record(bucketNodes, keyOf(use.GetNodeId()), &node)
	switch {
	case err != nil:
		return err
	case isMember && node.GetState() == proto.NodeState_NODE_STATE_REMOVED:
		return refuse(proto.Refusal_REFUSAL_NODE_REMOVED, "node %s", use.GetNodeId())
	case isMember && node.GetName() != use.GetNodeName():
		return refuse(proto.Refusal_REFUSAL_NODE_NAME_TAKEN, "node %s has the name %q, not %q", use.GetNodeId(), node.GetName(), use.GetNodeName())
	case earlier:
		return nil // it has the key that the token was used for
	case isMember && token.GetMember() != node.GetName():
		return refuse(proto.Refusal_REFUSAL_JOIN_TOKEN, "token %s is not for node %q, which is a member", token.GetId(), node.GetName())
	case !isMember && token.GetMember() != "":
		return refuse(proto.Refusal_REFUSAL_JOIN_TOKEN, "token %s lets member %q back in, and no new node", token.GetId(), token.GetMember())
	}
	return nil
}

// deleteJoinToken ends a token. Nodes that it has let in stay.
func (c *change) deleteJoinToken(command *proto.DeleteJoinToken) error {
	found, err := c.has(bucketJoinTokens, keyOf(command.GetId()))
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_JOIN_TOKEN, "there is no token %q", command.GetId())
	}
	return c.remove(bucketJoinTokens, keyOf(command.GetId()))
}

// expireJoinTokens drops tokens that are over for long.
func (c *change) expireJoinTokens(limit int) (int, error) {
	tokens, err := c.joinTokens()
	if err != nil {
		return 0, err
	}
	dropped := 0
	for _, token := range tokens {
		if dropped == limit || c.now < token.GetExpiresUnixMs()+joinTokenKept.Milliseconds() {
			continue
		}
		if err := c.remove(bucketJoinTokens, keyOf(token.GetId())); err != nil {
			return dropped, err
		}
		dropped++
	}
	return dropped, nil
}

// joinTokens returns all tokens, in the order of their ids.
func (v view) joinTokens() (tokens []*proto.JoinToken, err error) {
	err = v.scan(bucketJoinTokens, span{}, func(key, value []byte) error {
		token := &proto.JoinToken{}
		tokens = append(tokens, token)
		return decode(bucketJoinTokens, key, value, token)
	})
	return tokens, err
}

// JoinTokens returns all join tokens, those that are over included, in the order of
// their ids. Error: ErrUnavailable.
func (s *Store) JoinTokens(ctx context.Context) (tokens []*proto.JoinToken, err error) {
	err = s.read(ctx, func(v view) error {
		tokens, err = v.joinTokens()
		return err
	})
	return tokens, err
}

// KnowsJoinToken tells whether there is a token with that id and the hash of that
// secret, by the newest records. It says nothing of whether it is still good. It is
// there so that a wrong secret costs the cluster no log entry. Error: ErrUnavailable.
func (s *Store) KnowsJoinToken(ctx context.Context, id string, sum []byte) (known bool, err error) {
	err = s.read(ctx, func(v view) error {
		var token proto.JoinToken
		found, err := v.record(bucketJoinTokens, keyOf(id), &token)
		known = found && isSecretOf(&token, sum)
		return err
	})
	return known, err
}

// PutJoinToken adds a join token, of which its id, the hash of its secret, when it
// expires, uses, description and member count. Errors: ErrChanged if there is one with
// that id, ErrNodeUnknown if there is no such member, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) PutJoinToken(ctx context.Context, token *proto.JoinToken) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutJoinToken{PutJoinToken: &proto.PutJoinToken{Token: token}}})
	return err
}

// RedeemJoinToken uses a join token up by one, unless the same node has used it already
// with the same key. Errors: ErrJoinToken, ErrNodeRemoved, ErrNodeNameTaken if the id
// belongs to a node of another name, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) RedeemJoinToken(ctx context.Context, id string, sum []byte, use *proto.JoinTokenUse) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_RedeemJoinToken{RedeemJoinToken: &proto.RedeemJoinToken{
		Id: id, Sha256: sum, Use: use,
	}}})
	return err
}

// DeleteJoinToken ends a join token. Errors: ErrJoinToken if there is none,
// ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) DeleteJoinToken(ctx context.Context, id string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_DeleteJoinToken{DeleteJoinToken: &proto.DeleteJoinToken{Id: id}}})
	return err
}
