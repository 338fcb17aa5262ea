package gateway

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestEveryErrorHasAReply fails when metadata or blobstore get an error that the
// table does not have: it would be answered by a 500.
func TestEveryErrorHasAReply(t *testing.T) {
	table := parseFile(t, "error.go")
	known := map[string]bool{}
	ast.Inspect(table, func(n ast.Node) bool {
		pair, ok := n.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		if key, ok := pair.Key.(*ast.Ident); !ok || key.Name != "err" {
			return true
		}
		switch value := pair.Value.(type) {
		case *ast.SelectorExpr:
			known[value.X.(*ast.Ident).Name+"."+value.Sel.Name] = true
		case *ast.Ident:
			known[value.Name] = true
		}
		return true
	})
	for file, prefix := range map[string]string{"error.go": "err", "../metadata/errors.go": "metadata.Err", "../blobstore/errors.go": "blobstore.Err"} {
		pkg, name, found := strings.Cut(prefix, ".")
		if !found {
			pkg, name = "", prefix
		}
		sentinels := 0
		for _, sentinel := range sentinelsOf(parseFile(t, file), name) {
			sentinels++
			if pkg != "" {
				sentinel = pkg + "." + sentinel
			}
			if !known[sentinel] {
				t.Errorf("%s has no row in the table of replies", sentinel)
			}
		}
		if sentinels == 0 {
			t.Errorf("%s: no errors found", file)
		}
	}
}

func parseFile(t *testing.T, file string) *ast.File {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// sentinelsOf returns the package-level variables made by errors.New.
func sentinelsOf(file *ast.File, prefix string) (names []string) {
	for _, declaration := range file.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok || general.Tok != token.VAR {
			continue
		}
		for _, spec := range general.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if strings.HasPrefix(name.Name, prefix) {
					names = append(names, name.Name)
				}
			}
		}
	}
	return names
}

func TestReplies(t *testing.T) {
	code := regexp.MustCompile(`^[A-Z_]+$`)
	for _, row := range replies {
		if row.err == nil || row.message == "" || !code.MatchString(row.code) {
			t.Errorf("incomplete row %+v", row)
		}
		if row.status < 400 || http.StatusText(row.status) == "" {
			t.Errorf("%v: status %d", row.err, row.status)
		}
		retry := row.status == http.StatusServiceUnavailable || row.status == http.StatusTooManyRequests || row.status == http.StatusInsufficientStorage
		if retry != (row.retryAfter > 0) {
			t.Errorf("%v: status %d with Retry-After %d", row.err, row.status, row.retryAfter)
		}
		// Only codes that go-containerregistry takes for temporary make it try again.
		if row.status == http.StatusServiceUnavailable && row.code != codeUnavailable {
			t.Errorf("%v: status %d with code %s", row.err, row.status, row.code)
		}
		if found := findReply(row.err); found.err != row.err { // identity is what is tested
			t.Errorf("%v is answered as %v", row.err, found.err)
		}
	}
}
