package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/consensus"
	atoll "github.com/atollregistry/atoll/proto"
)

// Survey is what a stopped node knows before a recovery, and what it hears of others.
type Survey struct {
	// Node, ID and Cluster are this node's name and ids.
	Node, ID, Cluster string
	// LastTerm and LastIndex are the last entry that this node has. Of two nodes the one
	// with the higher term has more, and in the same term the one with the higher index.
	// AppliedIndex is how much of it its state has.
	LastTerm, LastIndex, AppliedIndex uint64
	// Appended is when the leader of then appended that entry; zero if not known.
	Appended time.Time
	// Fault says why log and state can't be read; empty if they can.
	Fault string
	// Nodes are the nodes of the cluster, this one included, sorted by name.
	Nodes []SurveyNode
	// Recovered is the cluster that was recovered from this node's; nil if no node says
	// that it belongs to one.
	Recovered *RecoveredCluster
	// Warnings are worth knowing, and Problems keep the recovery from being done.
	Warnings, Problems []string
}

// SurveyNode is a node that this one knows.
type SurveyNode struct {
	Name, ID, Address string
	Voter             bool
	// Answer says in words who answers at its address.
	Answer string
}

// RecoveredCluster is the cluster that a node answers it belongs to, and that was
// recovered from the one that was asked for.
type RecoveredCluster struct {
	ID string
	// Node is the name of the node that answered.
	Node string
	// LastTerm and LastIndex are the last entry that the recovery went on with.
	LastTerm, LastIndex uint64
	// direct says that it was recovered from this node's cluster, and not both from a third.
	direct bool
}

// Survey looks at what this node has, and asks the others who they are. It changes
// nothing.
func (r *Recovery) Survey(ctx context.Context, rejoin bool) (*Survey, error) {
	own := r.folder.identity
	s := &Survey{Node: own.Name, ID: own.ID, Cluster: own.ClusterID}
	answers, untrusted := r.identifyAll(ctx, r.addresses())
	var members []consensus.Member
	if r.fault != nil {
		s.Fault = r.fault.Error()
	} else if r.offline != nil {
		status, err := r.offline.Status()
		if err != nil {
			return nil, err
		}
		s.LastTerm, s.LastIndex, s.AppliedIndex, s.Appended = status.LastTerm, status.LastIndex, status.AppliedIndex, status.Appended
		members = status.Members
	}
	s.Nodes = r.surveyNodes(answers, untrusted, members)
	if rejoin {
		r.judgeRejoin(s, answers, untrusted)
		return s, nil
	}
	if err := r.machine.Verify(); err != nil {
		return nil, fmt.Errorf("read the whole state: %w: recover another node", err)
	}
	r.judgeRecover(s, answers)
	for _, address := range untrusted {
		s.Problems = append(s.Problems, fmt.Sprintf("the node at %s runs, and can't be asked in which cluster: %s; if nothing can come of that, stop it first", address, untrustedAdvice))
	}
	return s, nil
}

// untrustedAdvice is what to do where a node runs with which this one can't talk.
const untrustedAdvice = "one of the two does not take the other's certificate, which is expired, or of an authority that was changed meanwhile: " +
	"start this node once, with a token from 'atoll token create --member NAME' there if its log asks for one"

// surveyNodes lists the nodes of the cluster as this one knows it.
func (r *Recovery) surveyNodes(answers map[string]*atoll.IdentifyResponse, untrusted []string, members []consensus.Member) []SurveyNode {
	var nodes []SurveyNode
	for _, node := range r.members() {
		n := SurveyNode{Name: node.Name, ID: node.Id, Address: node.ClusterAddress, Answer: "does not answer"}
		for _, member := range members {
			n.Voter = n.Voter || member.ID == node.Id && member.Voter
		}
		if node.Id == r.folder.identity.ID {
			n.Answer = "is this one"
		} else if answer := answers[node.ClusterAddress]; answer != nil {
			n.Answer = r.describe(answer)
		} else if slices.Contains(untrusted, node.ClusterAddress) {
			n.Answer = "runs, but one of the two does not take the other's certificate"
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b SurveyNode) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

// describe says in words to which cluster a node belongs.
func (r *Recovery) describe(answer *atoll.IdentifyResponse) string {
	switch {
	case answer.ClusterId == "":
		return "runs on an empty data folder"
	case answer.ClusterId == r.folder.identity.ClusterID:
		return "runs"
	case r.goesOn(answer):
		return "runs in the recovered cluster " + answer.ClusterId
	default:
		return "runs in another cluster, " + answer.ClusterId
	}
}

// lineage is where this node's cluster comes from, as far as its data folder can tell.
func (r *Recovery) lineage() lineage {
	l := lineage{id: r.folder.identity.ClusterID}
	if r.machine != nil {
		l.recoveries = r.machine.Recoveries()
	}
	return l
}

// goesOn says whether a node that answers belongs to a cluster that was recovered from
// this node's, or from one that this node's was recovered from, too.
func (r *Recovery) goesOn(answer *atoll.IdentifyResponse) bool {
	own := r.lineage()
	return own.isRelated(answer) && own.parting(answer.ClusterId) == nil
}

// judgeRecover says what keeps this node from being recovered.
func (r *Recovery) judgeRecover(s *Survey, answers map[string]*atoll.IdentifyResponse) {
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	begun := r.folder.identity.Recovering
	if s.Cluster == "" || s.LastIndex == 0 {
		problem("this node has never been a member of a cluster: there is nothing to go on with")
		return
	}
	for _, address := range sortedAddresses(answers) {
		answer := answers[address]
		switch {
		case answer.ClusterId == s.Cluster:
			problem("node %s at %s runs: if most voters can run, start them, and all goes on by itself; if not, stop it first", answer.Name, address)
		case r.goesOn(answer):
			problem("the cluster was recovered already, as cluster %s, says node %s: run 'atoll recover --rejoin' here", answer.ClusterId, answer.Name)
		}
	}
	voters := slices.DeleteFunc(slices.Clone(s.Nodes), func(n SurveyNode) bool { return !n.Voter })
	if len(voters) == 1 && voters[0].ID == s.ID && begun == nil {
		problem("this node is the only one that votes: it needs nobody's vote, start it")
	}
	if begun != nil {
		s.Warnings = append(s.Warnings, "a recovery of this node was begun and cut off: with --yes it is completed")
	}
}

// judgeRejoin finds the cluster to rejoin, and says what keeps this node from it.
func (r *Recovery) judgeRejoin(s *Survey, answers map[string]*atoll.IdentifyResponse, untrusted []string) {
	problem := func(format string, args ...any) { s.Problems = append(s.Problems, fmt.Sprintf(format, args...)) }
	if s.Cluster == "" {
		problem("this node has never been a member of a cluster: just start it")
		return
	}
	for _, address := range sortedAddresses(answers) {
		answer := answers[address]
		switch {
		case answer.ClusterId == s.Cluster && len(answer.Recoveries) > 0:
			problem("this node belongs to the recovered cluster %s already: start it", s.Cluster)
			return
		case !r.goesOn(answer):
		case s.Recovered != nil && s.Recovered.ID != answer.ClusterId:
			problem("nodes answer of two recovered clusters, %s of %s and %s of %s: stop the nodes of one of them", s.Recovered.Node, s.Recovered.ID, answer.Name, answer.ClusterId)
		default:
			s.Recovered = r.recoveredCluster(answer)
		}
	}
	if s.Recovered == nil {
		problem("no node answers that its cluster was recovered from this node's, cluster %s: recover one node with 'atoll recover' and start it first; asked were %s",
			s.Cluster, strings.Join(r.addresses(), ", "))
		if len(untrusted) > 0 {
			problem("nodes run at %s that can't be asked: %s", strings.Join(untrusted, ", "), untrustedAdvice)
		}
		return
	}
	if s.Fault != "" {
		return
	}
	if !s.Recovered.direct {
		s.Warnings = append(s.Warnings, fmt.Sprintf("this node was recovered itself, as cluster %s: what was pushed there since, and what it had beyond the other, is given up", s.Cluster))
		return
	}
	more := cmp.Or(cmp.Compare(s.LastTerm, s.Recovered.LastTerm), cmp.Compare(s.LastIndex, s.Recovered.LastIndex)) > 0
	if more {
		s.Warnings = append(s.Warnings, fmt.Sprintf("this node has more than the cluster was recovered with: term %d, log index %d here, term %d, log index %d there. "+
			"What it alone has is given up; to keep it instead, stop the recovered nodes and recover this one",
			s.LastTerm, s.LastIndex, s.Recovered.LastTerm, s.Recovered.LastIndex))
	}
}

// recoveredCluster takes from an answer where the cluster parted from this node's.
func (r *Recovery) recoveredCluster(answer *atoll.IdentifyResponse) *RecoveredCluster {
	recovered := &RecoveredCluster{ID: answer.ClusterId, Node: answer.Name}
	own, other := r.lineage(), lineage{answer.ClusterId, answer.Recoveries}
	parting := other.parting(own.id)
	recovered.direct = parting != nil
	if !recovered.direct {
		_, parting = own.partingFrom(other)
	}
	recovered.LastTerm, recovered.LastIndex = parting.LastTerm, parting.LastIndex
	return recovered
}

func sortedAddresses(answers map[string]*atoll.IdentifyResponse) []string {
	var addresses []string
	for address := range answers {
		addresses = append(addresses, address)
	}
	slices.Sort(addresses)
	return addresses
}

// Refusal is why the recovery is not to be done; nil if it may.
func (s *Survey) Refusal() error {
	var errs []error
	for _, problem := range s.Problems {
		errs = append(errs, errors.New(problem))
	}
	return errors.Join(errs...)
}
