//go:build race

package metadata

// slowdown is what the race detector costs, about.
const slowdown = 10
