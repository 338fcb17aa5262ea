package node

import (
	"strings"
	"testing"
	"time"

	atoll "github.com/atollregistry/atoll/proto"
)

// TestRegistryCertificateIsNoted: an operator who asks how the cluster is sees that
// clients can't connect, or soon can't, and why.
func TestRegistryCertificateIsNoted(t *testing.T) {
	failed := &atoll.RegistryCertificate{Directory: "https://ca.example/dir", Failures: 3, Problem: "connection refused"}
	for _, test := range []struct {
		name    string
		expires time.Time
		record  *atoll.RegistryCertificate
		want    []string
	}{
		{"good", time.Now().Add(30 * 24 * time.Hour), &atoll.RegistryCertificate{}, nil},
		{"good, no record", time.Now().Add(30 * 24 * time.Hour), nil, nil},
		{"an attempt is under way", time.Now().Add(30 * 24 * time.Hour), &atoll.RegistryCertificate{Failures: 1}, nil},
		{"almost over", time.Now().Add(time.Hour), nil, []string{"expires on"}},
		{"over", time.Now().Add(-time.Hour), nil, []string{"has expired on"}},
		{"none yet", time.Time{}, nil, []string{"no certificate for clients yet"}},
		{"none to be had", time.Time{}, failed, []string{"no certificate for clients yet", "3 attempts in a row to get a certificate from https://ca.example/dir"}},
		{"no new one to be had", time.Now().Add(20 * 24 * time.Hour), failed, []string{"connection refused"}},
	} {
		status := &Status{}
		status.noteRegistryCertificate(test.expires, test.record)
		if len(status.Notes) != len(test.want) {
			t.Errorf("%s: %q", test.name, status.Notes)
			continue
		}
		for i, want := range test.want {
			if !strings.Contains(status.Notes[i], want) {
				t.Errorf("%s: %q, want %q", test.name, status.Notes[i], want)
			}
		}
	}
}
