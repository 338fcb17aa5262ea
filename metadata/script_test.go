package metadata

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

var rewrite = flag.Bool("rewrite", false, "write what the state machine answers into testdata")

// TestScripts runs the files in testdata. A file is a list of steps, each with
// what it must print behind a line of dashes, up to an empty line. A step is
//
//	dump [bucket ...]    prints records
//	at MILLISECONDS      sets the clock that commands are stamped with
//	anything else        is a command, a proto.Command in text form
//
// @{TEXT} stands for the SHA-256 digest of TEXT, and &{NAME REPOSITORY OWNER} for the id of an upload to the
// repository by an owner, if there is one, on the way in and out. Lines that begin with # say what it is about.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts in testdata", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{t: t, machine: openMachine(t, t.TempDir()), now: 1000, names: map[string]string{}}
			actual := s.run(string(content))
			checkInvariants(t, s.machine)
			switch {
			case actual == string(content):
			case *rewrite:
				if err := os.WriteFile(file, []byte(actual), 0o600); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("%s: output differs (go test -run TestScripts -rewrite, then look at the diff):\n%s",
					file, firstDifference(string(content), actual))
			}
		})
	}
}

type script struct {
	t       *testing.T
	machine *Machine
	last    uint64
	now     int64
	// names are the texts of digests and of ids of uploads.
	names map[string]string
}

// run returns the script with what its steps print now.
func (s *script) run(content string) string {
	var out []string
	for _, block := range strings.Split(strings.TrimRight(content, "\n"), "\n\n") {
		var comments, input []string
		for _, line := range strings.Split(block, "\n") {
			if line == "----" {
				break
			}
			if strings.HasPrefix(line, "#") {
				comments = append(comments, line)
			} else {
				input = append(input, line)
			}
		}
		block := append(comments, input...)
		if len(input) > 0 {
			block = append(block, "----", s.withNames(strings.TrimRight(s.step(s.withValues(strings.Join(input, "\n"))), "\n")))
		}
		out = append(out, strings.Join(block, "\n"))
	}
	return strings.Join(out, "\n\n") + "\n"
}

var (
	digestInScript = regexp.MustCompile(`@\{[^}]*\}`)
	uploadInScript = regexp.MustCompile(`&\{([^} ]*) ([^} ]*) ?([^}]*)\}`)
)

// withValues puts digests and ids of uploads in the places of their names.
func (s *script) withValues(text string) string {
	text = uploadInScript.ReplaceAllStringFunc(text, func(name string) string {
		parts := uploadInScript.FindStringSubmatch(name)
		id := uploadID(parts[1], parts[2], parts[3])
		s.names[id] = name
		return id
	})
	return digestInScript.ReplaceAllStringFunc(text, func(name string) string {
		digest := digestOf(name[2 : len(name)-1])
		s.names[digest] = name
		return digest
	})
}

func (s *script) withNames(text string) string {
	for value, name := range s.names {
		text = strings.ReplaceAll(text, value, name)
	}
	return text
}

func (s *script) step(input string) string {
	words := strings.Fields(input)
	switch words[0] {
	case "dump":
		return dump(s.t, s.machine, words[1:]...)
	case "at":
		if _, err := fmt.Sscan(words[1], &s.now); err != nil {
			s.t.Fatal(err)
		}
		return "ok"
	default:
		return s.apply(input)
	}
}

func (s *script) apply(input string) string {
	s.last++
	command := &proto.Command{RequestId: requestID(s.last), TimeUnixMs: s.now}
	var given proto.Command
	if err := prototext.Unmarshal([]byte(input), &given); err != nil {
		s.t.Fatalf("%s: %v", input, err)
	}
	pb.Merge(command, &given)
	before, undone := dump(s.t, s.machine), s.machine.at.Load().hash
	results, err := s.machine.Apply([]consensus.Entry{entryOf(s.t, s.last, command)})
	if err != nil {
		s.t.Fatalf("%s: %v", input, err)
	}
	var result proto.Result
	if err := pb.Unmarshal(results[0], &result); err != nil {
		s.t.Fatal(err)
	}
	if result.GetRefusal() != proto.Refusal_REFUSAL_UNSPECIFIED && withoutRequests(before) != withoutRequests(dump(s.t, s.machine)) {
		s.t.Errorf("%s: was refused and changed the state (hash before: %x)", input, undone)
	}
	if text := formatMessage(result.ProtoReflect()); text != "{}" {
		return text
	}
	return "ok"
}

// withoutRequests takes the answers to requests off a dump.
func withoutRequests(dump string) string {
	before, _, _ := strings.Cut(dump, string(bucketRequests)+":\n")
	return before
}

func firstDifference(expected, actual string) string {
	e, a := strings.Split(expected, "\n"), strings.Split(actual, "\n")
	for i := range min(len(e), len(a)) {
		if e[i] != a[i] {
			return fmt.Sprintf("line %d\n- %s\n+ %s", i+1, e[i], a[i])
		}
	}
	return fmt.Sprintf("%d lines, now %d", len(e), len(a))
}
