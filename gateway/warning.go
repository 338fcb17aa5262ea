package gateway

import "strings"

// maxWarningBytes is how much of warnings one reply may have ("Warnings" of the OCI
// distribution specification).
const maxWarningBytes = 4096

// warn tells the client's user something beside the reply, as a Warning header
// (RFC 7234 section 5.5; code 299 and agent "-" as the OCI specification wants
// them). containers/image shows it. What does not fit is left out.
func (x *exchange) warn(text string) {
	header := x.w.Header()
	warning := `299 - "` + warningText.Replace(text) + `"`
	total := len(warning)
	for _, before := range header.Values("Warning") {
		total += len(before)
	}
	if total <= maxWarningBytes && !strings.ContainsFunc(text, isControl) {
		header.Add("Warning", warning)
	}
}

// warnStale is for what was read without a quorum. No cache should keep it, nor the
// warning.
func (x *exchange) warnStale() {
	x.warn("the cluster has no quorum: this may be out of date")
	x.w.Header().Set("Cache-Control", "no-store, no-transform")
}

// warningText makes a text a quoted string of HTTP.
var warningText = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
