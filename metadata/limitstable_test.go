package metadata

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// limitsTable collects measurements: a column for each size of the state, a row for
// each measurement in the order of its first one.
type limitsTable struct {
	sizes []int
	names []string
	rows  map[string][]float64
}

func newLimitsTable() *limitsTable { return &limitsTable{rows: map[string][]float64{}} }

// begin begins the column of the next size.
func (t *limitsTable) begin(size int) { t.sizes = append(t.sizes, size) }

// add adds what was measured at that size, once for each name.
func (t *limitsTable) add(name string, value float64) {
	if t.rows[name] == nil {
		t.names = append(t.names, name)
	}
	t.rows[name] = append(t.rows[name], value)
}

// String returns the table in Markdown, with the factor between the last size and the
// first one.
func (t *limitsTable) String() string {
	var out strings.Builder
	fmt.Fprint(&out, "| tags, and as many blobs |")
	for _, size := range t.sizes {
		fmt.Fprintf(&out, " %s |", groupDigits(strconv.Itoa(size)))
	}
	fmt.Fprintf(&out, " factor |\n|-|%s-|\n", strings.Repeat("-|", len(t.sizes)))
	for _, name := range t.names {
		fmt.Fprintf(&out, "| %s |", name)
		row := t.rows[name]
		for _, value := range row {
			fmt.Fprintf(&out, " %s |", threeDigits(value))
		}
		factor := ""
		if row[0] > 0 {
			factor = threeDigits(row[len(row)-1] / row[0])
		}
		fmt.Fprintf(&out, " %s |\n", factor)
	}
	return out.String()
}

// threeDigits writes a number with at least three significant digits.
func threeDigits(value float64) string {
	decimals := 2
	if value != 0 {
		decimals = min(max(0, 2-int(math.Floor(math.Log10(math.Abs(value))))), 3)
	}
	return groupDigits(strconv.FormatFloat(value, 'f', decimals, 64))
}

// groupDigits puts commas between the thousands of a number.
func groupDigits(number string) string {
	whole, fraction, _ := strings.Cut(number, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction != "" {
		return whole + "." + fraction
	}
	return whole
}
