package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of a manifest's JSON.
const (
	// maxDepth is how deep it may nest. Manifests of today need 5.
	maxDepth = 64
	// maxTokens is how many names, values and brackets it may have. As many descriptors as
	// there may be, with ten annotations each, need 130,000.
	maxTokens = 1 << 19
)

// decodeManifest reads a manifest's JSON more strictly than encoding/json does.
// Parsers differ in which of two equal names counts, whether names match
// regardless of case, and what they make of broken UTF-8: whatever they could
// read differently is refused.
func decodeManifest(content []byte) (*parsedManifest, error) {
	if !utf8.Valid(content) {
		return nil, errors.New("not valid UTF-8")
	}
	// The decoder below returns tokens; whether they make up JSON, and nothing
	// comes after, is seen here.
	if !json.Valid(content) {
		return nil, errors.New("not valid JSON")
	}
	s := &scanner{decoder: json.NewDecoder(bytes.NewReader(content))}
	s.decoder.UseNumber()
	m := &parsedManifest{fields: make(map[string]struct{})}
	err := s.object(m.fields, map[string]func() error{
		"schemaVersion": func() error { return s.integer(&m.schemaVersion) },
		"mediaType":     func() error { return s.mediaType(&m.mediaType) },
		"artifactType":  func() error { return s.mediaType(&m.artifactType) },
		"config":        func() error { return s.optionalDescriptor(&m.config) },
		"layers":        func() error { return s.descriptors(&m.layers) },
		"manifests":     func() error { return s.descriptors(&m.manifests) },
		"fsLayers":      s.skip,
		"subject":       func() error { return s.optionalDescriptor(&m.subject) },
		"annotations":   func() error { return s.strings(&m.annotations) },
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// scanner reads JSON token by token. It keeps the path for messages.
type scanner struct {
	tokens  int
	decoder *json.Decoder
	path    []string
}

func (s *scanner) fail(problem string) error {
	if len(s.path) == 0 {
		return errors.New(problem)
	}
	return fmt.Errorf("%s: %s", strings.Join(s.path, "."), problem)
}

// token returns the next token. Names that must not come twice are kept, so that their
// number, as that of everything else, is bounded.
func (s *scanner) token() (json.Token, error) {
	if s.tokens++; s.tokens > maxTokens {
		return nil, fmt.Errorf("more than %d names, values and brackets", maxTokens)
	}
	return s.decoder.Token()
}

// within runs read with a name added to the path.
func (s *scanner) within(name string, read func() error) error {
	if len(s.path) >= maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	s.path = append(s.path, name)
	defer func() { s.path = s.path[:len(s.path)-1] }()
	return read()
}

// object reads an object. Each of its known fields is read by its function, the
// others are skipped, their names noted in seen.
func (s *scanner) object(seen map[string]struct{}, known map[string]func() error) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	if token != json.Delim('{') {
		return s.fail("not an object")
	}
	return s.members(seen, known)
}

// members reads what follows an object's opening brace.
func (s *scanner) members(seen map[string]struct{}, known map[string]func() error) error {
	for {
		token, err := s.token()
		if err != nil {
			return s.fail(err.Error())
		}
		if token == json.Delim('}') {
			return nil
		}
		name, _ := token.(string) // In valid JSON nothing else can stand here.
		if _, twice := seen[name]; twice {
			return s.fail(fmt.Sprintf("two fields %q", clip(name)))
		}
		seen[name] = struct{}{}
		read, found := known[name]
		if !found {
			if err := s.checkCase(name, known); err != nil {
				return err
			}
			read = s.skip
		}
		if err := s.within(clip(name), read); err != nil {
			return err
		}
	}
}

// checkCase refuses a name that differs from a known one only by case: Go's
// encoding/json, and with it most clients, take it for that one.
func (s *scanner) checkCase(name string, known map[string]func() error) error {
	for field := range known {
		if strings.EqualFold(name, field) {
			return s.fail(fmt.Sprintf("field %q must be written %q", clip(name), field))
		}
	}
	return nil
}

// skip reads any value and throws it away, but refuses in it what would be
// refused elsewhere.
func (s *scanner) skip() error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	switch token {
	case json.Delim('{'):
		return s.members(make(map[string]struct{}), nil)
	case json.Delim('['):
		return s.elements(s.skip)
	}
	return nil
}

// elements reads what follows an array's opening bracket, each element by read.
func (s *scanner) elements(read func() error) error {
	for i := 0; s.decoder.More(); i++ {
		if err := s.within(strconv.Itoa(i), read); err != nil {
			return err
		}
	}
	if _, err := s.token(); err != nil {
		return s.fail(err.Error())
	}
	return nil
}

// text reads a string; null counts as the empty one.
func (s *scanner) text(into *string) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	switch value := token.(type) {
	case string:
		*into = value
	case nil:
	default:
		return s.fail("not a string")
	}
	return nil
}

func (s *scanner) mediaType(into *string) error {
	if err := s.text(into); err != nil {
		return err
	}
	if len(*into) > maxMediaTypeBytes {
		return s.fail(fmt.Sprintf("longer than %d bytes", maxMediaTypeBytes))
	}
	return nil
}

func (s *scanner) integer(into *int64) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	number, ok := token.(json.Number)
	if !ok {
		return s.fail("not a number")
	}
	// Not a float: 2.0 and 1e3 are numbers that parsers differ about.
	*into, err = strconv.ParseInt(number.String(), 10, 64)
	if err != nil {
		return s.fail("not an integer")
	}
	return nil
}

// strings reads an object of strings; null counts as none.
func (s *scanner) strings(into *map[string]string) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	if token == nil {
		return nil
	}
	if token != json.Delim('{') {
		return s.fail("not an object")
	}
	*into = make(map[string]string)
	for s.decoder.More() {
		token, err := s.token()
		if err != nil {
			return s.fail(err.Error())
		}
		name, _ := token.(string) // In valid JSON nothing else can stand here.
		if _, twice := (*into)[name]; twice {
			return s.fail(fmt.Sprintf("two fields %q", clip(name)))
		}
		token, err = s.token()
		if err != nil {
			return s.fail(err.Error())
		}
		value, ok := token.(string)
		if !ok {
			return s.fail(fmt.Sprintf("%q is not a string", clip(name)))
		}
		(*into)[name] = value
	}
	if _, err := s.token(); err != nil {
		return s.fail(err.Error())
	}
	return nil
}

// descriptors reads an array of descriptors; null counts as an empty one.
func (s *scanner) descriptors(into *[]parsedDescriptor) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	if token == nil {
		return nil
	}
	if token != json.Delim('[') {
		return s.fail("not an array")
	}
	return s.elements(func() error {
		token, err := s.token()
		if err != nil {
			return s.fail(err.Error())
		}
		if token != json.Delim('{') {
			return s.fail("not an object")
		}
		if len(*into) >= maxReferences {
			return s.fail(fmt.Sprintf("more than %d descriptors", maxReferences))
		}
		*into = append(*into, parsedDescriptor{})
		return s.descriptor(&(*into)[len(*into)-1])
	})
}

// optionalDescriptor reads a descriptor; null counts as none.
func (s *scanner) optionalDescriptor(into **parsedDescriptor) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	if token == nil {
		return nil
	}
	if token != json.Delim('{') {
		return s.fail("not an object")
	}
	*into = &parsedDescriptor{}
	return s.descriptor(*into)
}

// descriptor reads what follows a descriptor's opening brace.
func (s *scanner) descriptor(d *parsedDescriptor) error {
	seen := make(map[string]struct{})
	d.size = -1
	err := s.members(seen, map[string]func() error{
		"mediaType": func() error { return s.mediaType(&d.mediaType) },
		"digest":    func() error { return s.text(&d.digest) },
		"size":      func() error { return s.integer(&d.size) },
		"urls":      func() error { return s.urls(&d.external) },
	})
	if err != nil {
		return err
	}
	if _, _, ok := splitDigest(d.digest); !ok {
		return s.fail("digest is not a sha256 or sha512 digest")
	}
	if d.mediaType == "" {
		return s.fail("mediaType is missing")
	}
	if d.size < 0 {
		return s.fail("size is missing or negative")
	}
	return nil
}

// urls reads an array of strings and says whether it has any.
func (s *scanner) urls(any *bool) error {
	token, err := s.token()
	if err != nil {
		return s.fail(err.Error())
	}
	if token == nil {
		return nil
	}
	if token != json.Delim('[') {
		return s.fail("not an array")
	}
	return s.elements(func() error {
		*any = true
		var url string
		return s.text(&url)
	})
}

// clip shortens a name for a message.
func clip(name string) string {
	const longest = 64
	if len(name) <= longest {
		return name
	}
	return strings.ToValidUTF8(name[:longest], "") + "..."
}
