package node

import (
	"context"
	"net/http"
)

// KeysRotated says that the keys were changed.
type KeysRotated struct {
	// TokenKey is the number of the key that signs from now on.
	TokenKey uint32 `json:"token_key"`
}

// RotateKeys changes the keys that tokens and redirects are signed with, through the
// node whose data folder is given. Everybody has to log in again.
func RotateKeys(ctx context.Context, dataDir string) (*KeysRotated, error) {
	rotated := &KeysRotated{}
	return rotated, sendAdmin(ctx, dataDir, http.MethodPost, "/keys/rotate", nil, rotated)
}

func (a *admin) serveRotateKeys(w http.ResponseWriter, r *http.Request) {
	if !a.checkAudit(w) {
		return
	}
	err := a.store.RotateKeys(r.Context())
	a.auditAdmin(r, "keys rotate", "keys", "", err)
	rotated := &KeysRotated{}
	if keys := a.store.TokenKeys(); len(keys) > 0 {
		rotated.TokenKey = keys[0].GetId()
	}
	answerAdmin(w, rotated, err)
}
