package main

import "os"

// heapFloor is how much memory of the process the garbage collector takes to be in use beside what is.
//
// What a node keeps in memory is little, and the collector runs when garbage is as much as that (GOGC), at
// least at 4 MiB: all the time, when the node is busy. With the floor it runs when garbage is this much more.
// Figures are in docs/performance.md.
const heapFloor = 12 << 20

// keepHeapFloor returns what the caller has to keep for as long as the floor is to be there: memory that is asked for
// and never touched, so that the kernel never gives it. Where the operator has set what the collector does, there is no floor.
func keepHeapFloor() []byte {
	for _, variable := range []string{"GOGC", "GOMEMLIMIT"} {
		if os.Getenv(variable) != "" {
			return nil
		}
	}
	return make([]byte, heapFloor)
}
