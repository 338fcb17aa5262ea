package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/atollregistry/atoll/proto"
)

// Keys of a policy's text.
const (
	keyRules        = "rules"
	keyImmutable    = "immutable"
	keyRepositories = "repositories"
	keySubjects     = "subjects"
	keyRights       = "rights"
	keyTags         = "tags"
)

// Parse reads a policy that an operator has written in YAML. The error tells all that
// is wrong with it, with line numbers. The policy has the text, and no revision.
func Parse(text []byte) (*proto.Policy, error) {
	if len(text) > MaxTextBytes {
		return nil, fmt.Errorf("policy has %d bytes, at most %d fit: give rights to groups, and name repositories by patterns", len(text), MaxTextBytes)
	}
	root, err := parseYAML(text)
	if err != nil {
		return nil, err
	}
	r := &reader{}
	p := &proto.Policy{Text: bytes.Clone(text)}
	r.document(root, p)
	if err := r.err(); err != nil {
		return nil, err
	}
	return p, Check(p)
}

// parseYAML returns the only document's root.
func parseYAML(text []byte) (*yaml.Node, error) {
	var document, second yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("policy is empty: write \"rules: []\" if nobody is to have any right")
	case err != nil:
		return nil, fmt.Errorf("policy is no YAML: %w (patterns that begin with * need quotes: \"**\")", err)
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, fmt.Errorf("line %d: a second document begins: a policy is one", second.Line)
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("policy is no YAML: %w", err)
	}
	return document.Content[0], nil
}

// reader turns YAML into a policy. It reads nodes rather than have YAML fill
// structs: so every fault has its line, a misspelt key is one, and aliases, which can
// make a small text large, are not followed.
type reader struct{ faults }

func (r *reader) document(root *yaml.Node, p *proto.Policy) {
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		r.add(root.Line, "policy is empty: write \"rules: []\" if nobody is to have any right")
		return
	}
	fields := r.mapping(root, "the policy", []string{keyRules}, keyRules, keyImmutable)
	rules := r.sequence(fields[keyRules], keyRules)
	r.checkCount(lineOf(fields[keyRules]), "rules", len(rules))
	for _, node := range rules {
		keys := []string{keyRepositories, keySubjects, keyRights}
		rule := r.mapping(node, "a rule", keys, keys...)
		p.Rules = append(p.Rules, &proto.PolicyRule{
			Repositories: r.list(rule, keyRepositories, checkRepositories),
			Subjects:     r.list(rule, keySubjects, checkSubject),
			Rights:       r.list(rule, keyRights, checkRight),
		})
	}
	entries := r.sequence(fields[keyImmutable], keyImmutable)
	r.checkCount(lineOf(fields[keyImmutable]), "entries of immutable tags", len(entries))
	for _, node := range entries {
		keys := []string{keyRepositories, keyTags}
		entry := r.mapping(node, "an entry of immutable tags", keys, keys...)
		p.Immutable = append(p.Immutable, &proto.ImmutableTags{
			Repositories: r.list(entry, keyRepositories, checkRepositories),
			Tags:         r.list(entry, keyTags, checkTags),
		})
	}
}

func lineOf(node *yaml.Node) int {
	if node == nil {
		return 0
	}
	return node.Line
}

// mapping returns the values of a mapping by their keys.
func (r *reader) mapping(node *yaml.Node, what string, required []string, known ...string) map[string]*yaml.Node {
	if node.Kind != yaml.MappingNode {
		r.add(node.Line, "%s is %s, and must be a mapping with the keys %s", what, kindOf(node), strings.Join(known, ", "))
		return nil
	}
	fields := map[string]*yaml.Node{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || !slices.Contains(known, key.Value):
			r.add(key.Line, "unknown key %.40q in %s: its keys are %s", key.Value, what, strings.Join(known, ", "))
		case fields[key.Value] != nil:
			r.add(key.Line, "%s is there twice, first in line %d", key.Value, fields[key.Value].Line)
		default:
			fields[key.Value] = value
		}
	}
	for _, key := range required {
		if fields[key] == nil {
			r.add(node.Line, "%s has no %s", what, key)
		}
	}
	return fields
}

// sequence returns the entries of a list; none of one that is missing, which mapping
// has complained of if it must be there.
func (r *reader) sequence(node *yaml.Node, key string) []*yaml.Node {
	if node == nil {
		return nil
	}
	if node.Kind != yaml.SequenceNode {
		r.add(node.Line, "%s is %s, and must be a list, as in [a, b]", key, kindOf(node))
		return nil
	}
	return node.Content
}

// list returns a list of texts that check has nothing against.
func (r *reader) list(fields map[string]*yaml.Node, key string, check func(string) error) (values []string) {
	node := fields[key]
	if node == nil {
		return nil
	}
	entries := r.sequence(node, key)
	if node.Kind == yaml.SequenceNode {
		r.checkList(node.Line, "", key, len(entries))
	}
	for _, entry := range entries {
		if entry.Kind != yaml.ScalarNode || entry.Tag == "!!null" {
			r.add(entry.Line, "an entry of %s is %s, and must be a text", key, kindOf(entry))
			continue
		}
		r.at(entry.Line, "", check(entry.Value))
		values = append(values, entry.Value)
	}
	return values
}

func kindOf(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "a mapping"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case node.Kind == yaml.AliasNode:
		return "an alias (a text that begins with * needs quotes)"
	case node.Tag == "!!null":
		return "empty"
	default:
		return "a single value"
	}
}
