package policy

import (
	"fmt"
	"strings"
)

// Kind is what sort of client a Subject is.
type Kind uint8

const (
	// Anonymous has not logged in.
	Anonymous Kind = iota
	// User is a person, from whatever source: an account, a file, another issuer.
	User
	// Robot is a program with a secret that atoll has made.
	Robot
)

// Subject is who asks. The zero Subject is anonymous.
type Subject struct {
	Kind Kind
	// Name is empty for Anonymous.
	Name string
	// Groups that the subject is a member of. Robots may be members, too.
	Groups []string
}

// String returns the subject as a policy names it: "user:NAME", "robot:NAME" or
// "anonymous".
func (s Subject) String() string {
	switch s.Kind {
	case User:
		return prefixUser + s.Name
	case Robot:
		return prefixRobot + s.Name
	default:
		return wordAnonymous
	}
}

// ParseSubject is the inverse of Subject.String; it leaves Groups empty.
func ParseSubject(text string) (Subject, error) {
	p, err := parsePrincipal(text)
	switch {
	case err != nil:
		return Subject{}, err
	case p.kind == principalAnonymous:
		return Subject{}, nil
	case p.kind == principalUser:
		return Subject{Kind: User, Name: p.name}, nil
	case p.kind == principalRobot:
		return Subject{Kind: Robot, Name: p.name}, nil
	default:
		return Subject{}, fmt.Errorf("%q is not one subject: name a user:NAME, a robot:NAME or anonymous", text)
	}
}

// How a policy names those whom a rule is for.
const (
	wordAnonymous     = "anonymous"
	wordAuthenticated = "authenticated"
	prefixUser        = "user:"
	prefixRobot       = "robot:"
	prefixGroup       = "group:"
)

// MaxNameBytes is the longest name of a user, a robot or a group in a policy. Names
// that another issuer gives may be longer than those of accounts.
const MaxNameBytes = 200

type principalKind uint8

const (
	principalAnonymous principalKind = iota
	principalAuthenticated
	principalUser
	principalRobot
	principalGroup
)

// principal is whom a rule is for. It is comparable, and so a key.
type principal struct {
	kind principalKind
	name string
}

// String is the inverse of parsePrincipal.
func (p principal) String() string {
	switch p.kind {
	case principalAuthenticated:
		return wordAuthenticated
	case principalUser:
		return prefixUser + p.name
	case principalRobot:
		return prefixRobot + p.name
	case principalGroup:
		return prefixGroup + p.name
	default:
		return wordAnonymous
	}
}

func parsePrincipal(text string) (principal, error) {
	switch text {
	case wordAnonymous:
		return principal{kind: principalAnonymous}, nil
	case wordAuthenticated:
		return principal{kind: principalAuthenticated}, nil
	}
	for _, form := range []struct {
		prefix string
		kind   principalKind
	}{{prefixUser, principalUser}, {prefixRobot, principalRobot}, {prefixGroup, principalGroup}} {
		if name, found := strings.CutPrefix(text, form.prefix); found {
			return principal{form.kind, name}, checkName(text, name)
		}
	}
	return principal{}, fmt.Errorf(
		"unknown subject %q: a subject is anonymous, authenticated, user:NAME, robot:NAME or group:NAME", text)
}

// checkName refuses names that could be mistaken for a pattern, or seen as another.
func checkName(subject, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("subject %q has no name behind the colon", subject)
	case len(name) > MaxNameBytes:
		return fmt.Errorf("subject %.40q... is longer than %d bytes", subject, MaxNameBytes)
	case strings.ContainsAny(name, "*?"):
		return fmt.Errorf("subject %q is no pattern: name each one, or give them a group", subject)
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return fmt.Errorf("subject %q: names are of visible ASCII characters", subject)
		}
	}
	return nil
}
