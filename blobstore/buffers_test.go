package blobstore

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

func TestBuffersKeepTheBudget(t *testing.T) {
	b := newBuffers(1 << 20)
	first := b.tryAcquire(768 << 10)
	if first == nil || len(first.data) != 768<<10 {
		t.Fatal("no buffer within the budget")
	}
	if b.tryAcquire(512<<10) != nil {
		t.Fatal("a buffer beyond the budget")
	}
	over := b.overdraw(512 << 10)
	if len(over.data) != 512<<10 {
		t.Fatalf("got %d bytes", len(over.data))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.acquire(ctx, 512<<10); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	over.release()
	if b.tryAcquire(512<<10) != nil {
		t.Fatal("what was outside of the budget came back to it")
	}
	first.release()
	all := b.tryAcquire(1 << 20)
	if all == nil {
		t.Fatal("the budget did not come back")
	}
	all.release()
}

// TestForfeitedBuffer: its memory is not used again, and its share of the budget is back.
func TestForfeitedBuffer(t *testing.T) {
	b := newBuffers(64 << 10)
	buf := b.tryAcquire(64 << 10)
	memory := buf.data
	buf.forfeit()
	again := b.tryAcquire(64 << 10)
	if again == nil {
		t.Fatal("the budget did not come back")
	}
	if &again.data[0] == &memory[0] {
		t.Error("somebody has the memory already")
	}
	again.release()
	if used := b.used.Load(); used != 0 {
		t.Errorf("%d bytes are in use", used)
	}
}

func TestBuffersLargerThanTheBudget(t *testing.T) {
	b := newBuffers(1 << 20)
	buf, err := b.acquire(context.Background(), 5<<20)
	if err != nil || len(buf.data) != 5<<20 {
		t.Fatalf("got %v", err)
	}
	if b.tryAcquire(1) != nil {
		t.Fatal("the whole budget was charged, but some is left")
	}
	buf.release()
}

func TestBuffersWait(t *testing.T) {
	b := newBuffers(1 << 20)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for range 50 {
				buf, err := b.acquire(ctx, (i+1)<<14)
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				for j := 0; j < len(buf.data); j += 1 << 10 {
					buf.data[j] = byte(i)
				}
				for j := 0; j < len(buf.data); j += 1 << 10 {
					if buf.data[j] != byte(i) {
						t.Errorf("two have the same memory")
						break
					}
				}
				buf.release()
			}
		})
	}
	all.Wait()
	if used := b.used.Load(); used != 0 {
		t.Errorf("%d bytes are in use", used)
	}
	if whole := b.tryAcquire(1 << 20); whole == nil {
		t.Error("the budget did not come back whole")
	}
}

func TestRoundBuffer(t *testing.T) {
	for bytes, want := range map[int]int{0: 4 << 10, 1: 4 << 10, 4 << 10: 4 << 10, 4<<10 + 1: 8 << 10, 63 << 10: 64 << 10, 64 << 10: 64 << 10, 64<<10 + 1: 128 << 10, 768 << 10: 768 << 10} {
		if got := roundBuffer(bytes); got != want {
			t.Errorf("%d is rounded to %d, want %d", bytes, got, want)
		}
	}
}
