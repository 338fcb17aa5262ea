package metadata

import (
	"errors"

	"github.com/rs/zerolog"
)

// MachineConfig says where a state machine lives.
type MachineConfig struct {
	// Dir is the folder of the state database; it is made when absent.
	Dir string
	// Logger receives what is worth knowing besides returned errors.
	Logger zerolog.Logger
	// Fatal is called once, when a read finds the state damaged: the node must not
	// go on. Errors of Apply and Restore are only returned. It may be nil.
	Fatal func(error)
}

// Machine is the replicated state on this node's disk.
type Machine struct{}

// OpenMachine opens the state in cfg.Dir, or creates an empty one.
func OpenMachine(cfg MachineConfig) (*Machine, error) {
	return nil, errors.ErrUnsupported
}

// Checkpoint returns the log index of the newest checkpoint that this node has
// applied, 0 if none, and the hash of its state there.
func (m *Machine) Checkpoint() (logIndex uint64, hash []byte) { return 0, nil }

// Close closes the database. It is safe to call twice.
func (m *Machine) Close() error { return nil }
