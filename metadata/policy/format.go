package policy

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/atollregistry/atoll/proto"
)

// Format writes a policy's rules as YAML that Parse reads back. Comments are in the
// policy's text only.
func Format(p *proto.Policy) []byte {
	rules, immutable := sequenceNode(0), sequenceNode(0)
	for _, rule := range p.GetRules() {
		rules.Content = append(rules.Content, mappingNode(
			keyRepositories, listNode(rule.GetRepositories()),
			keySubjects, listNode(rule.GetSubjects()),
			keyRights, listNode(rule.GetRights()),
		))
	}
	for _, tags := range p.GetImmutable() {
		immutable.Content = append(immutable.Content, mappingNode(
			keyRepositories, listNode(tags.GetRepositories()),
			keyTags, listNode(tags.GetTags()),
		))
	}
	text, err := yaml.Marshal(mappingNode(keyRules, rules, keyImmutable, immutable))
	if err != nil {
		panic("YAML of texts and lists only: " + err.Error())
	}
	return text
}

// mappingNode makes a mapping of keys, each followed by its *yaml.Node.
func mappingNode(pairs ...any) *yaml.Node {
	node := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i+1 < len(pairs); i += 2 {
		node.Content = append(node.Content, textNode(pairs[i].(string), 0), pairs[i+1].(*yaml.Node))
	}
	return node
}

func sequenceNode(style yaml.Style) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Style: style}
}

func listNode(texts []string) *yaml.Node {
	list := sequenceNode(yaml.FlowStyle)
	for _, text := range texts {
		list.Content = append(list.Content, textNode(text, yaml.DoubleQuotedStyle))
	}
	return list
}

func textNode(text string, style yaml.Style) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Style: style}
}

// Diff tells people what changes between two policies: the rules that go, marked with
// a minus, and those that come, marked with a plus. It is empty if both say the same,
// in whatever order.
func Diff(old, next *proto.Policy) string {
	before, after := sentences(old), sentences(next)
	var out strings.Builder
	for _, gone := range without(before, after) {
		fmt.Fprintf(&out, "- %s\n", gone)
	}
	for _, come := range without(after, before) {
		fmt.Fprintf(&out, "+ %s\n", come)
	}
	return out.String()
}

// sentences says each rule in one line, with the lists of each in one order.
func sentences(p *proto.Policy) (lines []string) {
	for _, rule := range p.GetRules() {
		lines = append(lines, fmt.Sprintf("%s may %s in %s",
			inOrder(rule.GetSubjects()), inOrder(rule.GetRights()), inOrder(rule.GetRepositories())))
	}
	for _, tags := range p.GetImmutable() {
		lines = append(lines, fmt.Sprintf("tags %s stay where they are in %s",
			inOrder(tags.GetTags()), inOrder(tags.GetRepositories())))
	}
	return lines
}

func inOrder(texts []string) string {
	sorted := slices.Sorted(slices.Values(texts))
	return strings.Join(slices.Compact(sorted), ", ")
}

// without returns the lines that are not among the others, in their order. A line that
// is there twice says nothing more than once.
func without(lines, others []string) (rest []string) {
	known := map[string]bool{}
	for _, line := range others {
		known[line] = true
	}
	for _, line := range lines {
		if !known[line] {
			known[line] = true
			rest = append(rest, line)
		}
	}
	return rest
}
