//go:build !linux

package netlab

import (
	"errors"
	"net/netip"
	"syscall"
)

const (
	deviceHeader = 0
	maxPacket    = 1500
)

var errLinuxOnly = errors.New("network namespaces exist on Linux only")

type namespace struct{}

func currentNamespace() (*namespace, error) { return nil, errLinuxOnly }

func (*namespace) child(func() error) (*namespace, error) { return nil, errLinuxOnly }

func (*namespace) do(func() error) error { return errLinuxOnly }

func (*namespace) adopt(string, string, syscall.RawConn) error { return errLinuxOnly }

func (*namespace) close() {}

type device struct{}

func newDevice(netip.Prefix) (*device, error) { return nil, errLinuxOnly }

func (*device) read([]byte) (int, error) { return 0, errLinuxOnly }

func (*device) write([]byte) bool { return false }

func (*device) stop() {}

func (*device) close() {}
