package gateway

import (
	"fmt"
	"slices"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// VisibleJSON escapes in JSON what a terminal could take for a command or would not
// show: DEL, and characters beyond ASCII that are not printable, as the control
// characters from U+0080 on, or those that turn the direction of writing. JSON has
// them in strings only, where encoders leave them as they are. What the text means
// stays the same. What has none of them is returned as it is.
func VisibleJSON(encoded []byte) []byte {
	if !slices.ContainsFunc(encoded, func(b byte) bool { return b >= asciiDelete }) {
		return encoded
	}
	visible := make([]byte, 0, len(encoded)+len(encoded)/4)
	for _, r := range string(encoded) {
		switch {
		case r < asciiDelete || unicode.IsPrint(r):
			visible = utf8.AppendRune(visible, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			visible = fmt.Appendf(visible, `\u%04x\u%04x`, high, low)
		default:
			visible = fmt.Appendf(visible, `\u%04x`, r)
		}
	}
	return visible
}

const asciiDelete = 0x7f
