package policy

import (
	"errors"
	"fmt"
	"strings"
)

// MaxPatternBytes is the longest pattern: that of the longest repository name.
const MaxPatternBytes = 255

// anyElements is the element of a repository pattern that stands for any number of
// elements, none too, so that "team-a/**" is also "team-a".
const anyElements = "**"

// repositoryPattern matches names of repositories, element by element.
type repositoryPattern struct {
	elements []string
	// prefix is what all names begin with that match. Most patterns are for other
	// repositories than the one that is asked about: this tells those at once.
	prefix string
}

// String returns the pattern as it was written.
func (p *repositoryPattern) String() string { return strings.Join(p.elements, "/") }

// parseRepositoryPattern refuses what can match no repository: whoever writes it
// means something else.
func parseRepositoryPattern(text string) (repositoryPattern, error) {
	if err := checkPattern(text); err != nil {
		return repositoryPattern{}, err
	}
	p := repositoryPattern{elements: strings.Split(text, "/")}
	for _, element := range p.elements {
		switch {
		case element == "":
			return repositoryPattern{}, fmt.Errorf("pattern %q begins or ends with a slash, or has two in a row: repositories have names such as team/app", text)
		case element != anyElements && strings.Contains(element, anyElements):
			return repositoryPattern{}, fmt.Errorf("pattern %q: ** stands for whole elements and is alone between slashes, as in team/**", text)
		}
		for i := range len(element) {
			if !isRepositoryByte(element[i]) {
				return repositoryPattern{}, fmt.Errorf("pattern %q has a %q: repositories have lower-case letters, digits, '.', '_' and '-', patterns * and ** as well", text, element[i])
			}
		}
	}
	literal, _, _ := strings.Cut(text, "*")
	p.prefix = strings.TrimSuffix(literal, "/") // "team/**" is "team", too
	return p, nil
}

func isRepositoryByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("._-*", c) >= 0
}

// matches reports whether the name is one that the pattern stands for. Like in
// matchGlob, only the last ** is ever tried again, so that the time is bounded by the
// product of both lengths.
func (p *repositoryPattern) matches(name string) bool {
	if !strings.HasPrefix(name, p.prefix) {
		return false
	}
	element, at := 0, 0 // the next element of the pattern, and where the name's begins
	retry, retryAt := -1, 0
	for at <= len(name) {
		end := endOfElement(name, at)
		switch {
		case element < len(p.elements) && p.elements[element] == anyElements:
			retry, retryAt = element, at
			element++
			continue
		case element < len(p.elements) && matchGlob(p.elements[element], name[at:end]):
			element, at = element+1, end+1
			continue
		case retry < 0:
			return false
		}
		// The last ** takes one element more.
		retryAt = endOfElement(name, retryAt) + 1
		element, at = retry+1, retryAt
	}
	for element < len(p.elements) && p.elements[element] == anyElements {
		element++
	}
	return element == len(p.elements)
}

// endOfElement returns where the element that begins at a place of the name ends.
func endOfElement(name string, begin int) int {
	if slash := strings.IndexByte(name[begin:], '/'); slash >= 0 {
		return begin + slash
	}
	return len(name)
}

// parseTagPattern checks a pattern of tags.
func parseTagPattern(text string) (string, error) {
	if err := checkPattern(text); err != nil {
		return "", err
	}
	for i := range len(text) {
		c := text[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-*?", c) >= 0) {
			return "", fmt.Errorf("pattern %q has a %q: tags have letters, digits, '.', '_' and '-', patterns * and ? as well", text, c)
		}
	}
	return text, nil
}

// checkPattern refuses what no pattern may be. What other programs give a meaning to
// gets its own words, so that nobody believes that it has it here.
func checkPattern(text string) error {
	switch {
	case text == "":
		return errors.New(`pattern is empty: "**" stands for all repositories, "*" for all tags`)
	case len(text) > MaxPatternBytes:
		return fmt.Errorf("pattern %.40q... is longer than %d bytes", text, MaxPatternBytes)
	case strings.ContainsAny(text, "[]{}!^\\"):
		return fmt.Errorf("pattern %q: there are no classes, alternatives or negations, write one pattern for each", text)
	}
	return nil
}

// matchGlob reports whether a pattern of literal bytes, * (any bytes, none too) and ?
// (one byte) stands for all of the text. Only the last * is ever tried again: what an
// earlier one could take more, the last one can take as well. So the time is bounded
// by the product of both lengths.
func matchGlob(pattern, text string) bool {
	p, t := 0, 0
	star, starText := -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, starText = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p, t = p+1, t+1
		case star >= 0:
			starText++
			p, t = star+1, starText
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
