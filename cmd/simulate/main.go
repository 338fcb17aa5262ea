// Command simulate works out how atoll's policies do in clusters that nobody has at hand: where
// shards go, which node serves a pull and keeps the blob, and who rebuilds what a dead node had.
//
// Placement, homes and repair plans are the store's own functions, and so is the count of what is
// hot. The cache is a model (cache.go), which a test holds against the real one. Networks and disks
// are numbers (rollout.go, steady.go). The same seed gives the same page.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

// run does what the command line asks for.
func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	seed := flags.Uint64("seed", 1, "seed of all that is random")
	write := flags.String("write", "", "file for the page, such as docs/scale.md; without it the page is printed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("there are flags only, and no %q", flags.Arg(0))
	}
	text, err := page(*seed)
	if err != nil {
		return err
	}
	if *write == "" {
		_, err = io.WriteString(out, text)
		return err
	}
	return os.WriteFile(*write, []byte(text), 0o644)
}
