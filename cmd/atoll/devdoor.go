package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/node"
)

const (
	// devAdmin is the user that dev --auth makes. The default policy lets the group do
	// everything.
	devAdmin, devAdminGroup = "admin", "admins"
	// doorTimeout bounds making it, on a machine that is busy.
	doorTimeout = 30 * time.Second
)

// openDoor sees to it that somebody can log in, and says how. Without --auth everybody
// may do everything, which is said as clearly.
func (d *dev) openDoor(ctx context.Context) (text string) {
	if !d.plan.auth {
		return "\nNobody logs in: who reaches the balancer may push, pull and delete. With --auth clients log in.\n"
	}
	host, folder := d.plan.host(), shellLine([]string{d.plan.dir})
	program := programName(d.cfg.executable)
	var b strings.Builder
	fmt.Fprintf(&b, "\nClients must trust the certificate authority %s,\n", d.plan.certificate.CA)
	fmt.Fprintf(&b, "docker by a copy of it: /etc/docker/certs.d/%s/ca.crt\n", host)
	password, err := d.makeAdmin(ctx)
	switch {
	case err != nil:
		d.report.event(zerolog.ErrorLevel, "", fmt.Sprintf("user %s is not there: %v\n  try '%s user add %s --group %s --data %s'",
			devAdmin, err, program, devAdmin, devAdminGroup, folder))
	case password == "":
		fmt.Fprintf(&b, "\nUser %s has the password of before; another one: %s user passwd %s --data %s\n", devAdmin, program, devAdmin, folder)
	default:
		d.report.password(devAdmin, password)
		fmt.Fprintf(&b, "\nUser %s may do everything. This is the only time that the password is shown:\n\n  %s\n", devAdmin, password)
	}
	fmt.Fprintf(&b, "\n  docker login --username %s %s\n", devAdmin, host)
	return b.String()
}

// makeAdmin makes the user unless it is there already, and returns the password, which
// is kept nowhere.
func (d *dev) makeAdmin(ctx context.Context) (password string, err error) {
	ctx, cancel := context.WithTimeout(ctx, doorTimeout)
	defer cancel()
	for _, n := range d.nodes {
		var accounts []node.Account
		if accounts, err = node.FetchAccounts(ctx, n.plan.data, node.KindUser); err != nil {
			continue // a node that is not ready; another one is
		}
		if slices.ContainsFunc(accounts, func(a node.Account) bool { return a.Name == devAdmin }) {
			return "", nil
		}
		answer, err := node.CreateAccount(ctx, n.plan.data, node.NewAccount{
			Name: devAdmin, Kind: node.KindUser, Groups: []string{devAdminGroup}, Description: "made by atoll dev",
		})
		if err != nil {
			return "", err
		}
		return string(answer.Secret), nil
	}
	return "", err
}
