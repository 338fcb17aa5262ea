package workload

import (
	"bytes"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// breakage is a fault that a workload must catch.
type breakage struct {
	workload string
	fault    func(f *fake) func(c fakeCall) *fakeReply
	want     []string // one of these kinds
}

func breakages() map[string]breakage {
	all := map[string]breakage{}
	maps.Copy(all, brokenTags())
	maps.Copy(all, brokenLists())
	maps.Copy(all, brokenDigests())
	return all
}

// brokenTags has what is wrong with tags.
func brokenTags() map[string]breakage {
	lose := func(f *fake) func(c fakeCall) *fakeReply {
		hit := everyNth(20)
		return func(c fakeCall) *fakeReply {
			if isTagWrite(c) && hit() {
				reply := f.state.clone().serve(c)
				return &reply
			}
			return nil
		}
	}
	twice := func(f *fake) func(c fakeCall) *fakeReply {
		hit := everyNth(5)
		return later(f, 150, func(c fakeCall) (*fakeCall, *fakeReply) {
			if c.method == http.MethodPut && c.header.Get("If-Match") == "" && isTagWrite(c) && hit() {
				return &c, nil
			}
			return nil, nil
		})
	}
	stale := func(f *fake) func(c fakeCall) *fakeReply {
		return lagging(f, 2, func(c fakeCall) bool { return isOf(c, true) })
	}
	illegal := []string{NotLinearizable}
	return map[string]breakage{
		"register: stale reads":         {"register", stale, illegal},
		"register: lost write":          {"register", lose, illegal},
		"register: put done twice":      {"register", twice, illegal},
		"multitag: stale reads":         {"multitag", stale, illegal},
		"multitag: lost write":          {"multitag", lose, illegal},
		"multitag: put done twice":      {"multitag", twice, illegal},
		"quorumless: stale tags":        {"quorumless", stale, illegal},
		"quorumless: stale HEADs":       {"quorumless", staleHeads, illegal},
		"quorumless: stale refusals":    {"quorumless", staleRefusals, illegal},
		"quorumless: stale lists":       {"quorumless", staleLists, []string{Stale, Lost}},
		"register: another type":        {"register", otherType, []string{WrongBytes}},
		"register: another repository":  {"register", missingBlob, []string{Refused}},
		"listing: lost write":           {"listing", lose, illegal},
		"listing: put done twice":       {"listing", twice, illegal},
		"register: conditions ignored":  {"register", ignoreConditions, illegal},
		"register: wrong bytes":         {"register", wrongBytes, []string{WrongBytes}},
		"register: other digest":        {"register", otherETag, []string{WrongBytes}},
		"register: refused":             {"register", forbid, []string{Refused}},
		"register: repository is gone":  {"register", forget, []string{Lost}},
		"register: config is gone":      {"register", collectConfig, []string{Lost}},
		"register: a node is silent":    {"register", silence, []string{Refused}},
		"multitag: torn, whole later":   {"multitag", tear(40), []string{Torn}},
		"multitag: torn for ever":       {"multitag", tear(1 << 30), []string{Torn}},
		"quorumless: no Retry-After":    {"quorumless", noRetryAfter, []string{Refused}},
		"quorumless: wrong bytes":       {"quorumless", wrongBytes, []string{WrongBytes}},
		"quorumless: put done twice":    {"quorumless", twice, illegal},
		"quorumless: acknowledged lost": {"quorumless", lose, append(illegal, Lost)},
	}
}

func staleHeads(f *fake) func(c fakeCall) *fakeReply {
	return lagging(f, 2, func(c fakeCall) bool { return isOf(c, true) && c.method == http.MethodHead })
}

func staleLists(f *fake) func(c fakeCall) *fakeReply {
	return lagging(f, 2, func(c fakeCall) bool { return strings.HasSuffix(c.url.Path, "/list") })
}

// staleRefusals has a node refuse by what tags were a while ago.
func staleRefusals(f *fake) func(c fakeCall) *fakeReply {
	old, renew := f.state.clone(), everyNth(60)
	return func(c fakeCall) *fakeReply {
		if renew() {
			old = f.state.clone()
		}
		if c.node != 2 || c.header.Get("If-Match") == "" {
			return nil
		}
		reply := old.clone().serve(c)
		return &reply
	}
}

func otherType(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		return changed(f, c, func(r *fakeReply) { r.header.Set("Content-Type", "text/plain") })
	}
}

// missingBlob refuses manifests for want of a blob that they do not name.
func missingBlob(*fake) func(c fakeCall) *fakeReply {
	hit := everyNth(50)
	return func(c fakeCall) *fakeReply {
		if c.method != http.MethodPut || !hit() {
			return nil
		}
		reply := fakeError(http.StatusNotFound, codeBlobUnknown, nil)
		return &reply
	}
}

func ignoreConditions(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		c.header.Del("If-Match")
		c.header.Del("If-None-Match")
		reply := f.state.serve(c)
		return &reply
	}
}

func wrongBytes(f *fake) func(c fakeCall) *fakeReply {
	hit := everyNth(50)
	return func(c fakeCall) *fakeReply {
		if c.method != http.MethodGet || !isOf(c, true) && !isOf(c, false) || !hit() {
			return nil
		}
		return changed(f, c, func(r *fakeReply) { r.body[len(r.body)/2] ^= 1 })
	}
}

func otherETag(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		return changed(f, c, func(r *fakeReply) { r.header.Set("ETag", `"`+absent+`"`) })
	}
}

func forbid(*fake) func(c fakeCall) *fakeReply {
	hit := everyNth(100)
	return func(c fakeCall) *fakeReply {
		if !isTagWrite(c) || !hit() {
			return nil
		}
		reply := fakeError(http.StatusForbidden, "DENIED", nil)
		return &reply
	}
}

func forget(*fake) func(c fakeCall) *fakeReply {
	hit := everyNth(100)
	return func(c fakeCall) *fakeReply {
		if c.method != http.MethodGet || !hit() {
			return nil
		}
		reply := fakeError(http.StatusNotFound, "NAME_UNKNOWN", nil)
		return &reply
	}
}

func collectConfig(f *fake) func(c fakeCall) *fakeReply {
	return func(fakeCall) *fakeReply {
		if f.calls > enough/2 {
			clear(f.state.repository("register").blobs)
		}
		return nil
	}
}

func silence(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		if c.node == 3 && f.calls > enough/2 {
			return &fakeReply{}
		}
		return nil
	}
}

func noRetryAfter(*fake) func(c fakeCall) *fakeReply {
	hit := everyNth(50)
	return func(c fakeCall) *fakeReply {
		if isWrite(c) || !isOf(c, true) || !hit() {
			return nil
		}
		reply := fakeError(http.StatusServiceUnavailable, "UNAVAILABLE", nil)
		return &reply
	}
}

// tear moves the last of several tags some requests later than the others.
func tear(after int) func(f *fake) func(c fakeCall) *fakeReply {
	return func(f *fake) func(c fakeCall) *fakeReply {
		hit := everyNth(4)
		return later(f, after, func(c fakeCall) (*fakeCall, *fakeReply) {
			query := c.url.Query()
			if len(query["tag"]) < 2 || !hit() {
				return nil, nil
			}
			first, rest := c, c
			query["tag"] = query["tag"][:2]
			first.url = &url.URL{Path: c.url.Path, RawQuery: query.Encode()}
			query["tag"] = c.url.Query()["tag"][2:]
			rest.url = &url.URL{Path: c.url.Path, RawQuery: query.Encode()}
			reply := f.state.serve(first)
			return &rest, &reply
		})
	}
}

// brokenLists has what is wrong with lists.
func brokenLists() map[string]breakage {
	change := func(paged bool, from, to string) func(f *fake) func(c fakeCall) *fakeReply {
		return func(f *fake) func(c fakeCall) *fakeReply { return listChanged(f, paged, from, to) }
	}
	missing := []string{Lost, Stale}
	return map[string]breakage{
		"listing: stale lists": {"listing", func(f *fake) func(c fakeCall) *fakeReply {
			return lagging(f, 2, func(c fakeCall) bool { return strings.HasSuffix(c.url.Path, "/list") })
		}, []string{NotLinearizable}},
		"listing: a tag is missing":          {"listing", change(false, `"t03",`, ""), []string{NotLinearizable}},
		"listing: a tag is missing in pages": {"listing", change(true, `"t03",`, ""), missing},
		"listing: a tag too much in pages":   {"listing", change(true, `"t03"`, `"t03","t03x"`), []string{WrongBytes, NotLinearizable}},
		"listing: a tag of nobody":           {"listing", change(false, `"t03"`, `"t03","t03x"`), []string{WrongBytes}},
		"listing: a double":                  {"listing", change(false, `"t03"`, `"t03","t03"`), []string{WrongBytes}},
		"listing: out of order":              {"listing", change(false, `"t03"`, `"t03","t00"`), []string{WrongBytes}},
		"listing: a repository is missing":   {"listing", change(true, `"listing/tags-0000",`, ""), missing},
		"multitag: a list lacks a tag":       {"multitag", lackOne, []string{Torn}},
		"listing: deleted tags stay": {"listing", func(f *fake) func(c fakeCall) *fakeReply {
			hit := everyNth(10)
			return func(c fakeCall) *fakeReply {
				if c.method == http.MethodDelete && hit() {
					reply := f.state.clone().serve(c)
					return &reply
				}
				return nil
			}
		}, []string{NotLinearizable}},
	}
}

// lackOne drops a tag from lists of more.
func lackOne(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		if !strings.HasSuffix(c.url.Path, "/tags/list") {
			return nil
		}
		return changed(f, c, func(r *fakeReply) {
			if i, j := bytes.IndexByte(r.body, '['), bytes.IndexByte(r.body, ','); j > 0 {
				r.body = slices.Delete(r.body, i+1, j+1)
			}
		})
	}
}

// brokenDigests has what is wrong with content that is named by its digest.
func brokenDigests() map[string]breakage {
	missing := func(code, endpoint string) func(*fake) func(c fakeCall) *fakeReply {
		return func(*fake) func(c fakeCall) *fakeReply {
			hit := everyNth(40)
			return func(c fakeCall) *fakeReply {
				if isWrite(c) || !strings.Contains(c.url.Path, endpoint) || !hit() {
					return nil
				}
				reply := fakeError(http.StatusNotFound, code, nil)
				return &reply
			}
		}
	}
	return map[string]breakage{
		"quorumless: 404 for a manifest": {"quorumless", missing("MANIFEST_UNKNOWN", "/manifests/sha256:"), []string{Stale, Lost}},
		"quorumless: 404 for a blob":     {"quorumless", missing("BLOB_UNKNOWN", "/blobs/sha256:"), []string{Stale, Lost}},
		"quorumless: manifests are lost": {"quorumless", func(f *fake) func(c fakeCall) *fakeReply {
			return func(c fakeCall) *fakeReply {
				if r := f.state.repositories["quorumless"]; r != nil && f.calls == f.after/2 {
					clear(r.manifests)
				}
				return nil
			}
		}, []string{Lost}},
		"quorumless: 503 for what was there": {"quorumless", noCopies, []string{Refused}},
		"quorumless: a layer is missing at once": {"quorumless", func(*fake) func(c fakeCall) *fakeReply {
			hit := everyNth(10)
			return func(c fakeCall) *fakeReply {
				if c.method != http.MethodPut || !isOf(c, true) || c.header.Get("If-Match") != "" || !hit() {
					return nil
				}
				reply := fakeError(http.StatusNotFound, codeBlobUnknown, nil)
				return &reply
			}
		}, []string{Refused}},
	}
}

// noCopies has all nodes refuse manifests by digest from half time on.
func noCopies(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		if !isWrite(c) && isOf(c, false) && f.calls > f.after/2 && f.calls <= f.after {
			return fakeUnavailable()
		}
		return nil
	}
}

// cutOff has a node refuse everything from half time on, as if its network were broken and it
// had no copy of its own.
func cutOff(f *fake) func(c fakeCall) *fakeReply {
	return func(c fakeCall) *fakeReply {
		if c.node == 1 && f.calls > f.after/2 && f.calls <= f.after {
			return fakeUnavailable()
		}
		return nil
	}
}
