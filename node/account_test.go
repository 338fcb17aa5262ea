package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// ownLog is a log of one node: what is proposed is applied at once.
type ownLog struct {
	mu      sync.Mutex
	machine *metadata.Machine
	last    uint64
	down    bool // guarded by mu, as all
}

func (l *ownLog) Propose(_ context.Context, command []byte) ([]byte, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, 0, consensus.ErrNoLeader
	}
	l.last++
	results, err := l.machine.Apply([]consensus.Entry{{Index: l.last, Term: 1, Data: command}})
	if err != nil {
		return nil, 0, err
	}
	return results[0], l.last, nil
}

func (l *ownLog) ReadIndex(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return consensus.ErrNoLeader
	}
	return nil
}

func (l *ownLog) setDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

// office is an operator's socket in front of a state of its own.
type office struct {
	dir   string
	store *metadata.Store
	log   *ownLog
	// written is what the node has logged; read it once the node is asked no more.
	written *bytes.Buffer
}

func openOffice(t *testing.T) *office {
	t.Helper()
	dir := t.TempDir()
	machine, err := metadata.OpenMachine(metadata.MachineConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	log := &ownLog{machine: machine}
	o := &office{dir: dir, log: log, store: metadata.NewStore(machine, log, metadata.StoreConfig{}), written: &bytes.Buffer{}}
	socket, err := listenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := &admin{store: o.store, registry: http.NotFoundHandler(), log: zerolog.New(zerolog.SyncWriter(o.written))}
	server := &http.Server{Handler: a.handler(), ConnContext: withOperator, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- server.Serve(socket) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		if err := machine.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func (o *office) create(t *testing.T, made NewAccount) *AccountAnswer {
	t.Helper()
	answer, err := CreateAccount(t.Context(), o.dir, made)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func (o *office) change(t *testing.T, name string, change AccountChange) *AccountAnswer {
	t.Helper()
	answer, err := ChangeAccount(t.Context(), o.dir, name, change)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// logsIn reports whether a password or a secret is good now, and at a later time.
func (o *office) logsIn(t *testing.T, name string, secret Secret, after time.Duration) bool {
	t.Helper()
	account, err := o.store.LocalAccount(name)
	if err != nil {
		t.Fatal(err)
	}
	_, ok := metadata.CheckLogin(account, string(secret), time.Now().Add(after))
	return ok
}

func (o *office) generation(t *testing.T, name string) uint64 {
	t.Helper()
	account, err := o.store.LocalAccount(name)
	if err != nil {
		t.Fatal(err)
	}
	return account.Generation
}

func TestUserFromFirstToLast(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	answer := o.create(t, NewAccount{Name: "alice", Kind: KindUser, Groups: []string{"b", "a", "b"}, Description: "Alice"})
	if answer.Secret == "" {
		t.Error("no password is made")
	}
	if a := answer.Account; !slices.Equal(a.Groups, []string{"a", "b"}) || a.Kind != KindUser || a.Description != "Alice" || a.Created.IsZero() {
		t.Errorf("account is %+v", a)
	}
	chosen := Secret("correct horse battery")
	generation := o.generation(t, "alice")
	if answer := o.change(t, "alice", AccountChange{Kind: KindUser, Password: &chosen}); answer.Secret != "" {
		t.Error("a password that was chosen is told")
	}
	if !o.logsIn(t, "alice", chosen, 0) || o.logsIn(t, "alice", answer.Secret, 0) || o.generation(t, "alice") == generation {
		t.Error("the password was not changed, or what was logged in goes on")
	}
	o.change(t, "alice", AccountChange{Kind: KindUser, AddGroups: []string{"c"}, RemoveGroups: []string{"a"}})
	account, err := FetchAccount(t.Context(), o.dir, KindUser, "alice")
	if err != nil || !slices.Equal(account.Groups, []string{"b", "c"}) {
		t.Errorf("groups are %q (%v)", account.Groups, err)
	}
	yes, no := true, false
	generation = o.generation(t, "alice")
	if answer := o.change(t, "alice", AccountChange{Kind: KindUser, Disabled: &yes}); !answer.Account.Disabled || o.generation(t, "alice") == generation {
		t.Error("the user is not disabled, or what was logged in goes on")
	}
	if answer := o.change(t, "alice", AccountChange{Kind: KindUser, Disabled: &no}); answer.Account.Disabled {
		t.Error("the user is not enabled")
	}
	if _, err := RemoveAccount(t.Context(), o.dir, KindUser, "alice"); err != nil {
		t.Fatal(err)
	}
	if accounts, err := FetchAccounts(t.Context(), o.dir, KindUser); err != nil || len(accounts) != 0 {
		t.Errorf("accounts are %v (%v)", accounts, err)
	}
}

func TestRobotsRotateWithoutAGap(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	first := o.create(t, NewAccount{Name: "ci", Kind: KindRobot, TTL: 90 * 24 * time.Hour})
	if !o.logsIn(t, "ci", first.Secret, 89*24*time.Hour) || o.logsIn(t, "ci", first.Secret, 91*24*time.Hour) {
		t.Error("the first secret does not count for 90 days")
	}
	generation := o.generation(t, "ci")
	second := o.change(t, "ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{Keep: time.Hour}})
	for what, good := range map[string]bool{
		"the old one within its hour":         o.logsIn(t, "ci", first.Secret, 59*time.Minute),
		"the new one for as long as it was":   o.logsIn(t, "ci", second.Secret, 89*24*time.Hour),
		"the old one behind its hour is none": !o.logsIn(t, "ci", first.Secret, 61*time.Minute),
		"the new one has an end":              !o.logsIn(t, "ci", second.Secret, 91*24*time.Hour),
		"what was logged in goes on":          o.generation(t, "ci") == generation,
	} {
		if !good {
			t.Error("not so:", what)
		}
	}
	forever := time.Duration(0)
	third := o.change(t, "ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{TTL: &forever}})
	if o.logsIn(t, "ci", first.Secret, 0) || o.logsIn(t, "ci", second.Secret, 0) || !o.logsIn(t, "ci", third.Secret, 1e5*time.Hour) {
		t.Error("with no time to keep, other secrets count than the last")
	}
	if o.generation(t, "ci") == generation {
		t.Error("what was logged in with a secret that ended goes on")
	}
	id := third.Account.Secrets[len(third.Account.Secrets)-1].ID
	o.change(t, "ci", AccountChange{Kind: KindRobot, Revoke: id})
	if o.logsIn(t, "ci", third.Secret, 0) {
		t.Error("a revoked secret counts")
	}
}

func TestRobotHasOnlySoManySecrets(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	o.create(t, NewAccount{Name: "ci", Kind: KindRobot})
	for range metadata.MaxSecrets - 1 {
		o.change(t, "ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{Keep: time.Hour}})
	}
	_, err := ChangeAccount(t.Context(), o.dir, "ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{Keep: time.Hour}})
	if err == nil || !strings.Contains(err.Error(), "atoll robot revoke ci") {
		t.Errorf("one secret too many: %v", err)
	}
	// Those that are over make room.
	if answer := o.change(t, "ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{}}); len(answer.Account.Secrets) != 1 {
		t.Errorf("secrets are %v", answer.Account.Secrets)
	}
}

// Every mistake is answered by what is wrong and what to do.
func TestMistakesWithAccounts(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	o.create(t, NewAccount{Name: "alice", Kind: KindUser})
	o.create(t, NewAccount{Name: "ci", Kind: KindRobot})
	create := func(made NewAccount) error { _, err := CreateAccount(t.Context(), o.dir, made); return err }
	change := func(name string, c AccountChange) error {
		_, err := ChangeAccount(t.Context(), o.dir, name, c)
		return err
	}
	remove := func(kind, name string) error { _, err := RemoveAccount(t.Context(), o.dir, kind, name); return err }
	fetch := func(kind, name string) error { _, err := FetchAccount(t.Context(), o.dir, kind, name); return err }
	short, none := Secret("short"), Secret("")
	for _, test := range []struct {
		err  error
		says string
	}{
		{create(NewAccount{Name: "alice", Kind: KindRobot}), "choose another name"},
		{create(NewAccount{Name: "Bob", Kind: KindUser}), "a-z"},
		{create(NewAccount{Name: "bob", Kind: "person"}), "user or a robot"},
		{create(NewAccount{Name: "bob", Kind: KindUser, Password: short}), "choose a longer one"},
		{create(NewAccount{Name: "bob", Kind: KindUser, Groups: []string{"a b"}}), `"a b"`},
		{create(NewAccount{Name: "bob", Kind: KindRobot, TTL: -1}), "can't count for"},
		{change("bob", AccountChange{Kind: KindUser}), "atoll user list"},
		{change("../v2/", AccountChange{Kind: KindUser}), "atoll user list"},
		{change("", AccountChange{Kind: KindRobot}), "atoll robot list"},
		{change("ci", AccountChange{Kind: KindUser}), "use 'atoll robot'"},
		{change("ci", AccountChange{Kind: KindRobot, Password: &none}), "atoll robot rotate ci"},
		{change("ci", AccountChange{Kind: KindRobot, Revoke: "1234"}), "atoll robot list"},
		{change("ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{Keep: -1}}), "can't be kept for"},
		{change("alice", AccountChange{Kind: KindUser, Rotate: &Rotation{}}), "atoll user passwd alice"},
		{change("alice", AccountChange{Kind: KindUser, RemoveGroups: []string{"g"}}), "not in the group"},
		{remove(KindRobot, "alice"), "use 'atoll user'"},
		{remove(KindUser, "bob"), "atoll user list"},
		{fetch(KindRobot, "alice"), "use 'atoll user'"},
		{fetch(KindUser, "bob"), "atoll user list"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.says) {
			t.Errorf("error is %v, want one with %q", test.err, test.says)
		}
		if test.err != nil && strings.Contains(test.err.Error(), string(short)+`"`) {
			t.Errorf("an error tells the password: %v", test.err)
		}
	}
}

func TestOperatorIsWarned(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	warned := func(answer *AccountAnswer, says string) {
		t.Helper()
		text := strings.Join(answer.Warnings, "\n")
		if (says == "") != (text == "") || !strings.Contains(text, says) {
			t.Errorf("warnings are %q, want %q", text, says)
		}
	}
	yes := true
	warned(o.create(t, NewAccount{Name: "ci", Kind: KindRobot}), "may do nothing yet")
	warned(o.create(t, NewAccount{Name: "cd", Kind: KindRobot, Groups: []string{"developers"}}), "")
	warned(o.create(t, NewAccount{Name: "root", Kind: KindRobot, Groups: []string{"admins"}}), "")
	warned(o.create(t, NewAccount{Name: "chief", Kind: KindRobot, Groups: []string{"admins"}}), "")
	warned(o.change(t, "chief", AccountChange{Kind: KindRobot, Disabled: &yes}), "") // there is another one
	warned(o.change(t, "root", AccountChange{Kind: KindRobot, RemoveGroups: []string{"admins"}}), "no account has the right admin")
	warned(o.change(t, "root", AccountChange{Kind: KindRobot, AddGroups: []string{"admins"}}), "")
	answer, err := RemoveAccount(t.Context(), o.dir, KindRobot, "root")
	if err != nil {
		t.Fatal(err)
	}
	warned(answer, "no account has the right admin")
}

// What operators change is written down with who did it, failures too, and no secret is
// in it, nor in what is printed or kept.
func TestChangesAreWrittenDownWithoutSecrets(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	chosen := Secret("correct horse battery")
	user := o.create(t, NewAccount{Name: "alice", Kind: KindUser, Password: chosen})
	robot := o.create(t, NewAccount{Name: "ci", Kind: KindRobot})
	rotated := o.change(t, "ci", AccountChange{Kind: KindRobot, Rotate: &Rotation{}})
	made := o.change(t, "alice", AccountChange{Kind: KindUser, Password: new(Secret)})
	if _, err := ChangeAccount(t.Context(), o.dir, "nobody", AccountChange{Kind: KindUser, Password: &chosen}); err == nil {
		t.Error("nobody has a password")
	}
	if _, err := RemoveAccount(t.Context(), o.dir, KindRobot, "ci"); err != nil {
		t.Fatal(err)
	}
	var actions []string
	for line := range strings.Lines(o.written.String()) {
		var event struct {
			Event, Object, Operator string
			Done                    bool
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if event.Operator != fmt.Sprintf("uid %d", os.Getuid()) {
			t.Errorf("operator is %q", event.Operator)
		}
		actions = append(actions, fmt.Sprint(event.Event, " ", event.Object, " ", event.Done))
	}
	expected := []string{"user add alice true", "robot add ci true", "robot change ci true", "user change alice true", "user change nobody false", "robot remove ci true"}
	if !slices.Equal(actions, expected) {
		t.Errorf("written down is %q", actions)
	}
	printed := fmt.Sprintf("%s %v %+v %#v %v", o.written.String(), user, *robot, rotated.Secret, AccountChange{Password: &chosen})
	for _, secret := range []Secret{chosen, robot.Secret, rotated.Secret, made.Secret} {
		if secret == "" || strings.Contains(printed, string(secret)) {
			t.Errorf("a secret is printed in %s", printed)
		}
	}
}

func TestAccountsWithoutQuorum(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	o.create(t, NewAccount{Name: "ci", Kind: KindRobot})
	o.log.setDown(true)
	if _, err := CreateAccount(t.Context(), o.dir, NewAccount{Name: "bob", Kind: KindRobot}); err == nil {
		t.Error("an account is made without a quorum")
	}
	if _, err := FetchAccounts(t.Context(), o.dir, KindUser); err == nil {
		t.Error("accounts are listed without a quorum")
	}
	o.log.setDown(false)
	if accounts, err := FetchAccounts(t.Context(), o.dir, KindRobot); err != nil || len(accounts) != 1 {
		t.Errorf("robots are %v (%v)", accounts, err)
	}
}

// A page of accounts is not all of them.
func TestVeryManyAccounts(t *testing.T) {
	t.Parallel()
	o := openOffice(t)
	for i := range accountsAtOnce + 2 {
		record := &atoll.Account{Name: fmt.Sprintf("user-%04d", i), Kind: atoll.AccountKind_ACCOUNT_KIND_USER}
		if err := o.store.PutAccount(t.Context(), record, nil); err != nil {
			t.Fatal(err)
		}
	}
	accounts, err := FetchAccounts(t.Context(), o.dir, KindUser)
	if err != nil || len(accounts) != accountsAtOnce+2 {
		t.Errorf("%d accounts (%v)", len(accounts), err)
	}
}
