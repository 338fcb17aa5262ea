package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// origin is where a request comes from and which URL the client used, as far as
// that can be known behind balancers.
type origin struct {
	// client is the address of the client, or of the last proxy that is not trusted.
	// Not valid if the connection has none.
	client netip.Addr
	// scheme is "http" or "https", host what the client takes for the registry's
	// host, with its port if it named one.
	scheme, host string
	// schemeKnown and hostKnown are false if there is a proxy on the way that does not
	// say which ones the client used, or is not trusted to. Then scheme and host are
	// what the proxy used.
	schemeKnown, hostKnown bool
}

// maxForwardedElements bounds the proxies that are looked through. Further ones,
// towards the client, are taken for the client.
const maxForwardedElements = 16

// originOf reads a request's origin. What Forwarded (RFC 7239) or the older
// X-Forwarded-For, -Proto and -Host say counts only as far as trusted proxies
// have written it: a client can send these headers itself. With any of the older
// ones there, Forwarded does not count, so that the headers of a proxy that knows
// only one kind can't be outdone by a client's other one; a proxy that writes
// Forwarded must take the others out.
func originOf(r *http.Request, trusted []netip.Prefix) origin {
	direct := !isForwarded(r.Header)
	o := origin{scheme: "http", host: r.Host, schemeKnown: direct, hostKnown: direct}
	if r.TLS != nil {
		o.scheme = "https"
	}
	o.client = peerOf(r)
	if !isTrusted(o.client, trusted) {
		return o
	}
	hops := forwardedHops(r.Header)
	for i := len(hops) - 1; i >= 0 && len(hops)-i <= maxForwardedElements; i-- {
		hop := hops[i]
		// Further out is nearer to the client: what this one does not say is not known.
		if o.schemeKnown = hop.scheme == "http" || hop.scheme == "https"; o.schemeKnown {
			o.scheme = hop.scheme
		}
		if o.hostKnown = validHost(hop.host); o.hostKnown {
			o.host = hop.host
		}
		if !hop.client.IsValid() {
			break // An obfuscated name, or rubbish: nobody to trust.
		}
		o.client = hop.client
		if !isTrusted(hop.client, trusted) {
			break
		}
	}
	return o
}

// peerOf is the address at the other end of the connection; not valid if it has none.
func peerOf(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap()
}

// hop is what one proxy wrote about who called it, and by which URL.
type hop struct {
	client       netip.Addr
	scheme, host string
}

// isForwarded says whether some proxy, trusted or not, has left its trace.
func isForwarded(header http.Header) bool {
	return slices.ContainsFunc([]string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"}, func(name string) bool {
		return len(header[name]) > 0
	})
}

// forwardedHops returns the hops, the one nearest to this node last.
func forwardedHops(header http.Header) []hop {
	clients := listOf(header.Values("X-Forwarded-For"))
	schemes, hosts := listOf(header.Values("X-Forwarded-Proto")), listOf(header.Values("X-Forwarded-Host"))
	switch {
	case len(clients)+len(schemes)+len(hosts) == 0:
		return parseForwarded(header.Values("Forwarded"))
	case len(clients) == 0:
		// A proxy that keeps the client's address to itself; it wrote last.
		return []hop{{scheme: strings.ToLower(last(schemes)), host: last(hosts)}}
	}
	hops := make([]hop, len(clients))
	for i, client := range clients {
		hops[i] = hop{client: parseNode(client), scheme: strings.ToLower(at(schemes, i, len(clients))), host: at(hosts, i, len(clients))}
	}
	return hops
}

// at returns the element that belongs to hop i of n. Most proxies write one
// scheme and host for all: then that is it.
func at(list []string, i, n int) string {
	switch {
	case len(list) == n:
		return list[i]
	case len(list) == 1:
		return list[0]
	default:
		return ""
	}
}

// last returns the last element; empty if there is none.
func last(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}

// listOf splits the values of a header that is a list of tokens.
func listOf(values []string) (list []string) {
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			if element = strings.TrimSpace(element); element != "" {
				list = append(list, element)
			}
		}
	}
	return list
}

// parseForwarded reads Forwarded: elements with commas between them, of pairs
// with semicolons between them, whose values may be quoted.
func parseForwarded(values []string) (hops []hop) {
	for _, value := range values {
		for _, element := range splitQuoted(value, ',') {
			var h hop
			for _, pair := range splitQuoted(element, ';') {
				name, value, _ := strings.Cut(pair, "=")
				value = unquote(strings.TrimSpace(value))
				switch strings.ToLower(strings.TrimSpace(name)) {
				case "for":
					h.client = parseNode(value)
				case "proto":
					h.scheme = strings.ToLower(value)
				case "host":
					h.host = value
				}
			}
			hops = append(hops, h)
		}
	}
	return hops
}

// splitQuoted splits at a separator outside of quotes, and drops empty parts.
func splitQuoted(text string, separator byte) (parts []string) {
	quoted, start := false, 0
	add := func(end int) {
		if part := strings.TrimSpace(text[start:end]); part != "" {
			parts = append(parts, part)
		}
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == separator && !quoted:
			add(i)
			start = i + 1
		}
	}
	add(len(text))
	return parts
}

// unquote takes the quotes off a quoted-string (RFC 9110 section 5.6.4).
func unquote(text string) string {
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return text
	}
	var plain strings.Builder
	for i := 1; i < len(text)-1; i++ {
		if text[i] == '\\' && i+1 < len(text)-1 {
			i++
		}
		plain.WriteByte(text[i])
	}
	return plain.String()
}

// parseNode reads an address with or without a port, and with or without the
// brackets of IPv6. What is none, such as "unknown", is not valid.
func parseNode(text string) netip.Addr {
	if pair, err := netip.ParseAddrPort(text); err == nil {
		return pair.Addr().Unmap()
	}
	address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		return netip.Addr{}
	}
	return address.Unmap()
}

func isTrusted(address netip.Addr, trusted []netip.Prefix) bool {
	for _, prefix := range trusted {
		if address.IsValid() && prefix.Contains(address.WithZone("")) {
			return true
		}
	}
	return false
}

// validHost says whether a text can stand for the host of a URL: a name or an
// address, with or without a port.
func validHost(host string) bool {
	if host == "" || len(host) > 255+len(":65535") {
		return false
	}
	for _, c := range []byte(host) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune("-._:[]", rune(c)) {
			return false
		}
	}
	return true
}

// hostname returns a host without its port, brackets and final dot, in lower case.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
