//go:build !linux

package sysmon

// slacken is for Linux.
func slacken() (undo func()) { return func() {} }

// Usual is for Linux.
func Usual() {}
