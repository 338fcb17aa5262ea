package gateway

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// RedirectMode is when a GET of a blob is answered by a redirect to its home.
type RedirectMode string

const (
	// RedirectOff never redirects.
	RedirectOff RedirectMode = "off"
	// RedirectAuto redirects if that spares work and the client will follow.
	RedirectAuto RedirectMode = "auto"
	// RedirectAlways redirects whenever the client will follow.
	RedirectAlways RedirectMode = "always"
)

// Homes knows which node a blob is best read from.
type Homes interface {
	// Home looks for the blob's home, for clients that ask this node, among the nodes that are well now.
	Home(digest string, extents []*proto.Extent) Home
}

// Home is where a blob is best read.
type Home struct {
	// URL is the registry port of that node, as clients reach it. Empty if no node
	// is known that they reach.
	URL string
	// Self says that it is this node.
	Self bool
	// AtHand says that this node needs no other to read the blob: it is in its cache, or whole on its
	// disk.
	AtHand bool
	// Keeps says that this node could keep the blob whole.
	Keeps bool
}

// decision is why a GET was redirected or not, as a label of metrics.
type decision string

const (
	decidedRedirect decision = "redirect"
	decidedOff      decision = "off"      // switched off
	decidedSigned   decision = "signed"   // it was redirected to here
	decidedRange    decision = "range"    // a part: clients resume at the first URL
	decidedDeclined decision = "declined" // the request asks for none
	decidedAgent    decision = "agent"    // this client is known to fail
	decidedSmall    decision = "small"    // not worth another request
	decidedAtHand   decision = "at-hand"  // all of it is on this node's disk
	decidedSelf     decision = "self"     // this is the home
	decidedHot      decision = "hot"      // so popular that each node should have it
	decidedNoHome   decision = "no-home"  // no other node is well and has a URL
	decidedProxy    decision = "proxy"    // a proxy hides which scheme the client used
	decidedScheme   decision = "scheme"   // from https to http, or the other way
	decidedHost     decision = "host"     // clients' guards could refuse it
	decidedNoKey    decision = "no-key"   // nothing to sign with yet
)

// declineHeader and declineParameter ask for the blob from this very node.
const (
	declineHeader    = "X-Atoll-No-Redirect"
	declineParameter = "redirect" // =0
)

// failingAgents are clients, by how their User-Agent begins, that can't be
// redirected: Jib sends the credentials along and follows no redirect to http.
var failingAgents = []string{"jib"}

// redirectTarget decides whether a GET of a blob is redirected, and where to.
func (g *gateway) redirectTarget(x *exchange, blob *proto.Blob) (target string, why decision, err error) {
	if why := g.declines(x); why != "" {
		return "", why, nil
	}
	always := g.cfg.Redirect == RedirectAlways
	if !always && blob.GetSize() < uint64(g.cfg.RedirectMinBytes) {
		return "", decidedSmall, nil
	}
	home := g.cfg.Homes.Home(x.reference, blob.GetExtents())
	switch {
	case home.Self:
		return "", decidedSelf, nil
	case home.AtHand && !always:
		return "", decidedAtHand, nil
	case home.URL == "":
		return "", decidedNoHome, nil
	}
	if why := whyNotThere(home.URL, x.origin); why != "" {
		return "", why, nil
	}
	if !always && home.Keeps && g.popularity.Note(x.reference, g.now()) {
		return "", decidedHot, nil
	}
	keys, err := g.metadata.SigningKeys()
	if err != nil {
		return "", decidedNoKey, fmt.Errorf("look for a signing key: %w", err)
	}
	if len(keys) == 0 {
		return "", decidedNoKey, nil
	}
	query := signBlob(keys[0], x.repository, x.reference, g.now().Add(g.cfg.RedirectTTL))
	return strings.TrimSuffix(home.URL, "/") + blobPath(x.repository, x.reference) + "?" + query, decidedRedirect, nil
}

// declines returns why a request is answered here, whatever the blob.
func (g *gateway) declines(x *exchange) decision {
	agent := strings.ToLower(x.r.UserAgent())
	for _, failing := range failingAgents {
		if strings.HasPrefix(agent, failing) {
			return decidedAgent
		}
	}
	switch {
	case isSigned(x.query):
		return decidedSigned
	case g.cfg.Homes == nil || g.cfg.Redirect == RedirectOff:
		return decidedOff
	case x.r.Header.Get("Range") != "":
		return decidedRange
	case x.query.Get(declineParameter) == "0" || x.r.Header.Get(declineHeader) != "":
		return decidedDeclined
	}
	return ""
}

// whyNotThere returns why a client that came by the given URL may refuse to
// follow to a target; empty if all known clients follow. go-containerregistry
// refuses addresses of private networks unless it was the very host it asked,
// regclient and oras a change from https to http, and others resolve names and
// look at what comes out: so only the same host, or a name that the operator gave.
func whyNotThere(target string, from origin) decision {
	to, err := url.Parse(target)
	if err != nil || to.Host == "" {
		return decidedNoHome
	}
	there, here := hostname(to.Host), hostname(from.host)
	switch {
	case !from.schemeKnown:
		return decidedProxy
	case to.Scheme != from.scheme:
		return decidedScheme
	case !isAddress(there) && !isLocal(there):
		return ""
	case there != here || !from.hostKnown:
		return decidedHost
	}
	return ""
}

// isAddress says whether clients take a host for an address. Some read shorter and
// other notations too, such as 127.1 and 0x7f000001; no name ends with a number.
func isAddress(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	label := host[strings.LastIndexByte(host, '.')+1:]
	digits, hexadecimal := strings.CutPrefix(label, "0x")
	return strings.Trim(label, "0123456789") == "" || hexadecimal && strings.Trim(digits, "0123456789abcdef") == ""
}

func isLocal(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// redirect answers with the way to another node. The target is good for a while
// only, so nobody may keep it.
func (x *exchange) redirect(target string) error {
	header := x.w.Header()
	for _, name := range []string{"Accept-Ranges", "Content-Type", "Etag"} {
		header.Del(name)
	}
	header.Set("Cache-Control", "no-store")
	header.Set("Location", target)
	return x.reply(http.StatusTemporaryRedirect)
}
