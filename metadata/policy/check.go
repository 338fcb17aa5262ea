package policy

import (
	"errors"
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// Bounds of a policy. It is one command in the log and one value in the state, both
// its text and what was read from it, and an entry of the log takes 512 KiB.
const (
	// MaxTextBytes bounds what the operator writes.
	MaxTextBytes = 192 << 10
	// MaxRules bounds the rules, and as many entries of immutable tags.
	MaxRules = 1000
	// maxListed bounds the patterns, subjects and rights of one rule.
	maxListed = 1000
	// maxBytes bounds patterns, subjects and rights together.
	maxBytes = MaxTextBytes
	// maxFaults bounds what one error tells.
	maxFaults = 20
)

// Check returns what is wrong with a policy, all of it at once: patterns, subjects and
// rights that mean nothing, or more of them than fit. The state machine asks it, and so
// it must accept the same in every version, as Compiled.Immutable must match the same;
// words may change.
func Check(p *proto.Policy) error {
	f := &faults{}
	f.checkCount(0, "rules", len(p.GetRules()))
	f.checkCount(0, "entries of immutable tags", len(p.GetImmutable()))
	bytes := 0
	list := func(where, key string, values []string, check func(string) error) {
		f.checkList(0, where, key, len(values))
		for _, value := range values {
			bytes += len(value)
			f.at(0, where, check(value))
		}
	}
	for i, rule := range p.GetRules() {
		where := fmt.Sprintf("rule %d: ", i+1)
		list(where, keyRepositories, rule.GetRepositories(), checkRepositories)
		list(where, keySubjects, rule.GetSubjects(), checkSubject)
		list(where, keyRights, rule.GetRights(), checkRight)
	}
	for i, tags := range p.GetImmutable() {
		where := fmt.Sprintf("immutable %d: ", i+1)
		list(where, keyRepositories, tags.GetRepositories(), checkRepositories)
		list(where, keyTags, tags.GetTags(), checkTags)
	}
	if len(p.GetText()) > MaxTextBytes || bytes > maxBytes {
		f.add(0, "policy is larger than %d bytes", MaxTextBytes)
	}
	return f.err()
}

func checkRepositories(text string) error { _, err := parseRepositoryPattern(text); return err }
func checkTags(text string) error         { _, err := parseTagPattern(text); return err }
func checkSubject(text string) error      { _, err := parsePrincipal(text); return err }
func checkRight(text string) error        { _, err := rightOf(text); return err }

// faults collects what is wrong with a policy, so that whoever writes one learns
// everything at once.
type faults struct {
	found []error
	more  int
}

// add notes a fault in a line of the text; 0 for none.
func (f *faults) add(line int, format string, args ...any) {
	f.at(line, "", fmt.Errorf(format, args...))
}

// at notes an error, if there is one.
func (f *faults) at(line int, where string, err error) {
	switch {
	case err == nil:
	case len(f.found) == maxFaults:
		f.more++
	case line > 0:
		f.found = append(f.found, fmt.Errorf("line %d: %s%w", line, where, err))
	default:
		f.found = append(f.found, fmt.Errorf("%s%w", where, err))
	}
}

func (f *faults) checkCount(line int, what string, n int) {
	if n > MaxRules {
		f.add(line, "%d %s are more than %d: give rights to groups, and name repositories by patterns", n, what, MaxRules)
	}
}

func (f *faults) checkList(line int, where, key string, n int) {
	switch {
	case n == 0:
		f.add(line, "%s%s is empty: name at least one, or remove the rule", where, key)
	case n > maxListed:
		f.add(line, "%s%s has %d entries, more than %d", where, key, n, maxListed)
	}
}

// err returns all faults, nil for none.
func (f *faults) err() error {
	if f.more > 0 {
		return errors.Join(append(f.found, fmt.Errorf("and %d more", f.more))...)
	}
	return errors.Join(f.found...)
}
