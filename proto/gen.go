// Package proto holds everything that crosses a wire between nodes or enters
// the Raft log, and nothing else: no logic is written by hand here.
//
// The generated files are committed. To regenerate them: protoc 3.21 (Debian's
// protobuf-compiler), then go generate ./proto. The two plugins are pinned as
// tools in go.mod.
package proto

//go:generate ./generate.sh
