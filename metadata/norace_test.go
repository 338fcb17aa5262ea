//go:build !race

package metadata

const slowdown = 1
