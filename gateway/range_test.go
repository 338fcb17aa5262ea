package gateway

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseRange(t *testing.T) {
	for _, test := range []struct {
		header string
		size   uint64
		want   []span
		err    error
	}{
		{"bytes=0-0", 10, []span{{0, 1}}, nil},
		{"bytes=0-9", 10, []span{{0, 10}}, nil},
		{"bytes=0-10", 10, []span{{0, 10}}, nil},
		{"bytes=9-", 10, []span{{9, 1}}, nil},
		{"bytes=-1", 10, []span{{9, 1}}, nil},
		{"bytes=-10", 10, []span{{0, 10}}, nil},
		{"bytes=-11", 10, []span{{0, 10}}, nil},
		{"bytes=0-9223372036854775807", 10, []span{{0, 10}}, nil},
		{"bytes=2-3,5-6", 10, []span{{2, 2}, {5, 2}}, nil},
		{"bytes= 2-3 , ,5-6,", 10, []span{{2, 2}, {5, 2}}, nil},
		{"bytes=2-3,20-30", 10, []span{{2, 2}}, nil},
		{"bytes=10-", 10, nil, errRangeInvalid},
		{"bytes=10-11,-0", 10, nil, errRangeInvalid},
		{"bytes=500-0", 1000, nil, errRangeInvalid},
		{"bytes=", 10, nil, errRangeInvalid},
		{"bytes=,", 10, nil, errRangeInvalid},
		{"bytes=-", 10, nil, errRangeInvalid},
		{"bytes=a-b", 10, nil, errRangeInvalid},
		{"bytes=1-2,x", 10, nil, errRangeInvalid},
		{"bytes=+1-2", 10, nil, errRangeInvalid},
		{"bytes=1--2", 10, nil, errRangeInvalid},
		{"bytes=0-9223372036854775808", 10, nil, errRangeInvalid},
		{"bytes=0-0", 0, nil, errRangeInvalid},
		{"bytes=-1", 0, nil, errRangeInvalid},
		{"bytes=0-", 0, nil, errRangeInvalid},
		{"", 10, nil, nil},
		{"Bytes=0-1", 10, nil, nil},
		{"chapters=1-2", 10, nil, nil},
		{"bytes=" + strings.Repeat("0-0,", maxRanges), 10, slices.Repeat([]span{{0, 1}}, maxRanges), nil},
		{"bytes=" + strings.Repeat("0-0,", maxRanges+1), 10, nil, errTooManyRanges},
	} {
		got, err := parseRange(test.header, test.size)
		if !slices.Equal(got, test.want) || !errors.Is(err, test.err) {
			t.Errorf("%.40s of %d: got %v, %v", test.header, test.size, got, err)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for header, want := range map[string][2]uint64{
		"0-0": {0, 0}, "5-9": {5, 9}, "bytes 5-9": {5, 9}, "bytes 5-9/10": {5, 9}, "bytes 5-9/*": {5, 9}, " 5-9 ": {5, 9},
		"0-9223372036854775807": {0, 1<<63 - 1},
	} {
		first, last, ok := parseContentRange(header)
		if !ok || first != want[0] || last != want[1] {
			t.Errorf("%q: got %d-%d, %v", header, first, last, ok)
		}
	}
	for _, header := range []string{"", "-", "5", "5-", "-5", "9-5", "a-b", "+1-2", "1-2-3", "bytes */10", "0-9223372036854775808", "bytes=1-2"} {
		if first, last, ok := parseContentRange(header); ok {
			t.Errorf("%q: got %d-%d", header, first, last)
		}
	}
}

func TestUploadRange(t *testing.T) {
	for size, want := range map[uint64]string{0: "0-0", 1: "0-0", 2: "0-1", 1 << 40: "0-1099511627775"} {
		if got := uploadRange(size); got != want {
			t.Errorf("%d: got %s", size, got)
		}
	}
}

// FuzzParseRange: no range reaches outside of the content, and none is empty.
func FuzzParseRange(f *testing.F) {
	f.Add("bytes=0-1,5-,-3", uint64(10))
	f.Add("bytes=500-0", uint64(1000))
	f.Fuzz(func(t *testing.T, header string, size uint64) {
		size >>= 1 // Sizes are below 2^63.
		spans, err := parseRange(header, size)
		if err != nil && len(spans) > 0 {
			t.Errorf("%d spans with %v", len(spans), err)
		}
		for _, s := range spans {
			if s.length == 0 || s.offset >= size || s.length > size-s.offset {
				t.Errorf("%d+%d of %d", s.offset, s.length, size)
			}
		}
	})
}

// FuzzParseContentRange: what is accepted is a range, and its length fits.
func FuzzParseContentRange(f *testing.F) {
	f.Add("0-5")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, header string) {
		first, last, ok := parseContentRange(header)
		if ok && (last < first || last-first+1 == 0 || last >= 1<<63) {
			t.Errorf("%d-%d", first, last)
		}
	})
}
