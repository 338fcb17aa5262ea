package main

import (
	"fmt"
	"strconv"
	"strings"
)

// seriesValue returns the value of a series, which is a name with labels, on a page of
// metrics in Prometheus's text form.
func seriesValue(page, series string) (float64, error) {
	for line := range strings.Lines(page) {
		text, found := strings.CutPrefix(line, series+" ")
		if !found {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			return 0, fmt.Errorf("value of %s: %w", series, err)
		}
		return value, nil
	}
	return 0, fmt.Errorf("there is no series %s", series)
}
