package policy

import (
	"github.com/atollregistry/atoll/proto"
)

// Compiled is a policy in the form in which it is asked at every request. It never
// changes, so that any number of goroutines may ask at a time.
type Compiled struct {
	revision uint64
	// rules are those that each subject, or group of subjects, has. Most rules are
	// for others than the one who asks: looking them up by subject keeps a policy of
	// a thousand rules as fast as one of three.
	rules     map[principal][]compiledRule
	immutable []compiledTags
}

type compiledRule struct {
	number       int // in the policy, from 1
	repositories []repositoryPattern
	rights       Rights
}

type compiledTags struct {
	repositories []repositoryPattern
	tags         []string
}

// Compile makes a policy ready to be asked. The policy is one that Check accepts: of
// any other, what Check complains of gives no rights.
func Compile(p *proto.Policy) *Compiled {
	c := &Compiled{revision: p.GetRevision(), rules: map[principal][]compiledRule{}}
	for i, rule := range p.GetRules() {
		compiled := compiledRule{number: i + 1, repositories: compileRepositories(rule.GetRepositories())}
		for _, name := range rule.GetRights() {
			if right, err := rightOf(name); err == nil {
				compiled.rights |= right
			}
		}
		for _, subject := range rule.GetSubjects() {
			if who, err := parsePrincipal(subject); err == nil {
				c.rules[who] = append(c.rules[who], compiled)
			}
		}
	}
	for _, tags := range p.GetImmutable() {
		compiled := compiledTags{repositories: compileRepositories(tags.GetRepositories())}
		for _, text := range tags.GetTags() {
			if pattern, err := parseTagPattern(text); err == nil {
				compiled.tags = append(compiled.tags, pattern)
			}
		}
		c.immutable = append(c.immutable, compiled)
	}
	return c
}

func compileRepositories(texts []string) (patterns []repositoryPattern) {
	for _, text := range texts {
		if pattern, err := parseRepositoryPattern(text); err == nil {
			patterns = append(patterns, pattern)
		}
	}
	return patterns
}

// Revision is that of the policy: 0 for the default, one more with every change.
func (c *Compiled) Revision() uint64 { return c.revision }

// Rights returns what the subject may do in the repository. It allocates nothing.
func (c *Compiled) Rights(who Subject, repository string) (rights Rights) {
	c.principals(who, func(_ principal, rules []compiledRule) bool {
		for i := range rules {
			if !rights.Has(rules[i].rights) && matchesAny(rules[i].repositories, repository) != noPattern {
				rights |= rules[i].rights
			}
		}
		return rights != All
	})
	return rights
}

// AnyRight reports whether there is a rule for the subject at all, whatever the
// repository.
func (c *Compiled) AnyRight(who Subject) (found bool) {
	c.principals(who, func(_ principal, rules []compiledRule) bool {
		found = len(rules) > 0
		return !found
	})
	return found
}

// Administers reports whether there is a rule that gives the subject the right Admin,
// whatever the repository.
func (c *Compiled) Administers(who Subject) (found bool) {
	c.principals(who, func(_ principal, rules []compiledRule) bool {
		for i := range rules {
			found = found || rules[i].rights.Has(Admin)
		}
		return !found
	})
	return found
}

// principals calls visit with all that a rule may call the subject, and the rules
// that do, until visit wants no more.
//
// What anybody may do without logging in, everybody may: to log in must not take
// rights away. "authenticated" are users only; robots get what a rule gives to them by
// name or by group, since a forgotten secret should open as little as possible.
func (c *Compiled) principals(who Subject, visit func(principal, []compiledRule) bool) {
	next := func(p principal) bool { return visit(p, c.rules[p]) }
	if !next(principal{kind: principalAnonymous}) || who.Kind == Anonymous {
		return
	}
	switch who.Kind {
	case User:
		if !next(principal{kind: principalAuthenticated}) || !next(principal{principalUser, who.Name}) {
			return
		}
	case Robot:
		if !next(principal{principalRobot, who.Name}) {
			return
		}
	default: // a kind that nobody knows is nobody
		return
	}
	for _, group := range who.Groups {
		if !next(principal{principalGroup, group}) {
			return
		}
	}
}

// noPattern is what matchesAny returns if none matches.
const noPattern = -1

// matchesAny returns which of the patterns is the first to match.
func matchesAny(patterns []repositoryPattern, repository string) int {
	for i := range patterns {
		if patterns[i].matches(repository) {
			return i
		}
	}
	return noPattern
}

// Immutable reports whether a tag of the repository, once made, stays where it is.
func (c *Compiled) Immutable(repository, tag string) bool {
	for i := range c.immutable {
		if matchesAny(c.immutable[i].repositories, repository) == noPattern {
			continue
		}
		for _, pattern := range c.immutable[i].tags {
			if matchGlob(pattern, tag) {
				return true
			}
		}
	}
	return false
}

// AnyImmutable reports whether the repository may have tags that stay where they are.
func (c *Compiled) AnyImmutable(repository string) bool {
	for i := range c.immutable {
		if matchesAny(c.immutable[i].repositories, repository) != noPattern {
			return true
		}
	}
	return false
}

// Grant is why a subject has rights.
type Grant struct {
	// Rule is the number of the rule in the policy, from 1.
	Rule int
	// Subject is what the rule calls the subject, such as "group:team-a".
	Subject string
	// Repositories is the pattern that the repository matches.
	Repositories string
	// Rights that the rule gives, with those that they include.
	Rights Rights
}

// Explain returns the grants that Rights is the sum of, by rule.
func (c *Compiled) Explain(who Subject, repository string) (grants []Grant) {
	c.principals(who, func(p principal, rules []compiledRule) bool {
		for _, rule := range rules {
			if i := matchesAny(rule.repositories, repository); i != noPattern {
				grants = append(grants, Grant{
					Rule: rule.number, Subject: p.String(),
					Repositories: rule.repositories[i].String(), Rights: rule.rights,
				})
			}
		}
		return true
	})
	return grants
}
