package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/rs/zerolog"
)

// Archive is a copy of a cluster's state that is read apart from the cluster, such
// as one that a backup has kept. Its Store answers every read from the copy, and
// takes no writes: those fail with ErrUnavailable.
type Archive struct {
	*Store
	machine *Machine
}

// OpenArchive reads a state as Machine.Snapshot gives it into a folder, which is
// made if need be and should be empty, and checks every byte and every record of
// it. Error: ErrCorrupt.
func OpenArchive(dir string, snapshot io.Reader) (*Archive, error) {
	machine, err := OpenMachine(MachineConfig{Dir: dir, Logger: zerolog.Nop()})
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	if err := machine.Restore(snapshot); err != nil {
		return nil, errors.Join(fmt.Errorf("open archive: %w", err), machine.Close())
	}
	return &Archive{Store: NewStore(machine, noLog{}, StoreConfig{}), machine: machine}, nil
}

// Close closes the copy. The folder is the caller's to remove.
func (a *Archive) Close() error { return a.machine.Close() }

// noLog is the log of a state that does not change any more.
type noLog struct{}

var errArchive = errors.New("an archive takes no writes")

func (noLog) Propose(context.Context, []byte) ([]byte, uint64, error) {
	return nil, 0, fmt.Errorf("%w: %w", ErrUnavailable, errArchive)
}

func (noLog) ReadIndex(context.Context) error { return nil }
