package metadata

import (
	"testing"
	"time"
)

// Ids are in logs and in clients' hands: what they mean does not change.
func TestUploadID(t *testing.T) {
	const id = "018bcfe5-687b-807e-8035-d69edca649e7"
	if got := uploadIDAt(1_700_000_000_123, "name", "lib/app", "user:alice"); got != id {
		t.Errorf("the id is %s", got)
	}
	if begun, ok := uploadBegun(id, "lib/app", "user:alice"); !ok || begun != 1_700_000_000_123 {
		t.Errorf("it was begun at %d, %v", begun, ok)
	}
	for _, other := range []struct{ id, repository, owner string }{
		{id, "lib/ap", "user:alice"}, {id, "lib/app", "user:bob"}, {id, "lib/app", ""}, {id, "", "user:alice"},
		{id[:35] + "0", "lib/app", "user:alice"}, {"1" + id[1:], "lib/app", "user:alice"},
		{id[:14] + "4" + id[15:], "lib/app", "user:alice"}, {"{" + id + "}", "lib/app", "user:alice"},
		{"urn:uuid:" + id, "lib/app", "user:alice"}, {"", "lib/app", "user:alice"},
	} {
		if _, ok := uploadBegun(other.id, other.repository, other.owner); ok {
			t.Errorf("%q was begun by %q in %q", other.id, other.owner, other.repository)
		}
	}
}

func TestNewUploadIDs(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_123)
	seen := make(map[string]bool)
	for range 1000 {
		id := newUploadID("app", "", now)
		if begun, ok := uploadBegun(id, "app", ""); !ok || begun != now.UnixMilli() || seen[id] {
			t.Fatalf("%s was begun at %d, %v", id, begun, ok)
		}
		seen[id] = true
	}
}

func TestMayBegin(t *testing.T) {
	id := uploadIDAt(10_000, "name", "app", "")
	for now, want := range map[int64]bool{0: true, 10_000: true, 10_999: true, 11_000: false, 1 << 50: false} {
		if got := mayBegin(id, "app", "", now, 1000); got != want {
			t.Errorf("at %d: %v", now, got)
		}
	}
}
