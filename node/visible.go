package node

import (
	"io"

	"github.com/atollregistry/atoll/gateway"
)

// VisibleLog returns a writer for a log of JSON lines, one in each call, that escapes
// what a terminal could take for a command: a log has names from outside.
func VisibleLog(w io.Writer) io.Writer { return visibleLog{w} }

type visibleLog struct{ w io.Writer }

// Write implements io.Writer.
func (v visibleLog) Write(line []byte) (int, error) {
	if _, err := v.w.Write(gateway.VisibleJSON(line)); err != nil {
		return 0, err
	}
	return len(line), nil
}
