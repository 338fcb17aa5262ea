package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxLine bounds a line of the file.
const maxLine = 8 << 20

// ErrTruncated is that the last line of a file is not whole. The writer was stopped.
var ErrTruncated = errors.New("history: the last line is cut off")

// Read reads what a Log wrote: operations in the order in which they returned, faults in
// the order in which they ended, then those that never did. If only the last line is cut
// off, it returns all before it, and ErrTruncated. Any other error names the line.
func Read(r io.Reader) (ops []Op, faults []Fault, err error) {
	in := bufio.NewReaderSize(r, maxLine)
	for number := 1; ; number++ {
		text, err := in.ReadSlice('\n')
		atEnd := errors.Is(err, io.EOF)
		if err != nil && !atEnd {
			return ops, faults, fmt.Errorf("history: line %d: %w", number, err)
		}
		if atEnd && len(bytes.TrimSpace(text)) == 0 {
			return ops, faults, nil
		}
		var one line
		switch err := json.Unmarshal(text, &one); {
		case err != nil && atEnd:
			return ops, faults, fmt.Errorf("%w (line %d)", ErrTruncated, number)
		case err != nil:
			return ops, faults, fmt.Errorf("history: line %d: %w", number, err)
		case one.Op != nil:
			ops = append(ops, *one.Op)
		case one.Fault != nil:
			faults = append(faults, *one.Fault)
		default:
			return ops, faults, fmt.Errorf("history: line %d: neither an operation nor a fault", number)
		}
		if atEnd {
			return ops, faults, nil
		}
	}
}
