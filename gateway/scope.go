package gateway

import (
	"slices"
	"strings"
)

// scope is what a client wants to do, as distribution's token specification writes
// it: TYPE:NAME:ACTION[,ACTION]...
type scope struct {
	kind, name string
	actions    []string
}

// Types of scopes, and the one name of a registry scope.
const (
	scopeRepository = "repository"
	scopeRegistry   = "registry"
	scopeCatalog    = "catalog"
)

// Actions of scopes. all stands for every one that there is.
const (
	actionPull   = "pull"
	actionPush   = "push"
	actionDelete = "delete"
	actionAll    = "*"
)

// maxScopes is how many scopes of a request are looked at. Clients ask for one
// repository, and those that they mount from.
const maxScopes = 64

// parseScopes reads scope parameters, which may be several, each with several
// scopes. What can't be read asks for nothing. Names may have colons, as those with a
// registry's port in front; there is no such repository.
func parseScopes(parameters []string) (scopes []scope) {
	for _, parameter := range parameters {
		for text := range strings.FieldsSeq(parameter) {
			first, last := strings.Index(text, ":"), strings.LastIndex(text, ":")
			if first == last || len(scopes) == maxScopes {
				continue
			}
			kind, _, _ := strings.Cut(text[:first], "(") // repository(plugin) is a repository.
			scopes = append(scopes, scope{kind: kind, name: text[first+1 : last], actions: strings.Split(text[last+1:], ",")})
		}
	}
	return scopes
}

// String writes the scope as clients do.
func (s scope) String() string { return s.kind + ":" + s.name + ":" + strings.Join(s.actions, ",") }

func (s scope) wants(action string) bool {
	return slices.Contains(s.actions, action) || slices.Contains(s.actions, actionAll)
}
