package gateway

import (
	"context"
	"net/http"

	"github.com/atollregistry/atoll/metadata/policy"
)

// operatorKey marks the requests of the operator in their context.
type operatorKey struct{}

// AsOperator returns a handler that has the handler that New made do everything
// without a login. It is for requests that only the operator can send, such as those
// by the operator's socket.
func AsOperator(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), operatorKey{}, true)))
	})
}

func isOperator(r *http.Request) bool { return r.Context().Value(operatorKey{}) != nil }

// loginOperator is the operator's socket. No token can say so.
const loginOperator loginMethod = "operator"

// operator is who the operator is where a subject is named: nobody that a policy knows.
var operator = identity{subject: policy.Subject{}, method: loginOperator, presented: true}

// name is how an identity is called in logs and in the records of uploads; empty as long
// as it is not known, and where nobody logs in.
func (who identity) name() string {
	switch who.method {
	case "":
		return ""
	case loginOperator:
		return string(loginOperator)
	default:
		return who.subject.String()
	}
}
