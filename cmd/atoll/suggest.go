package main

import "fmt"

// maxTypos is how many letters a name may be off to be suggested.
const maxTypos = 3

// unknown is the error for a name that nothing has, with the nearest of the
// names that there are.
func unknown(what, name string, names []string) error {
	nearest, typos := "", maxTypos+1
	for _, candidate := range names {
		// Half of a short name is not a typo any more.
		if d := distance(name, candidate); d < typos && d <= len(candidate)/2 {
			nearest, typos = candidate, d
		}
	}
	if nearest == "" {
		return fmt.Errorf("unknown %s %q", what, name)
	}
	return fmt.Errorf("unknown %s %q: did you mean %q?", what, name, nearest)
}

// distance counts the letters to insert, delete or replace to get from a to b
// (Levenshtein's distance), by the usual table of which it keeps one row.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
