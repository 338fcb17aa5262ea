package main

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
)

// setting is one key of the configuration file, one environment variable and one
// flag, which all have the same name in their own spelling.
type setting struct {
	key   string
	kind  settingKind
	usage string
}

// settings lists everything that can be configured, in the order in which people
// read about it. A test holds it against node.Config.
func settings() []setting {
	return []setting{
		{"name", kindText, "the node's name, unique in the cluster (default: the host name)"},
		{"data", kindList, "data folders, made when absent, for one process at a time: the first has the metadata and shards, others, on disks of their own, have shards"},
		{"join", kindList, "cluster addresses of the nodes to form a cluster with or to join, HOST:PORT,..."},
		{"bootstrap", kindBool, "form a new cluster of this one node if the data folder is empty"},
		{"token", kindText, "join token, from 'atoll token create', by which a node gets its certificate at its first start; secret, see token-file"},
		{"token-file", kindText, "file with a join token"},
		{"zone", kindText, "failure zone: nodes of one zone may fail together"},
		{"capacity", kindBytes, "how many bytes to offer for shards, which weighs the node in placement (default: the file system's size)"},
		{"parity", kindNumber, "how many shards of an extent may be lost, 0 to 4; -1 takes it from the number of nodes"},
		{"reserve-bytes", kindBytes, "bytes of the file system that shards leave free (default: 5 %, at most 4GiB)"},
		{"cache-bytes", kindBytes, "bytes of whole blobs that the node keeps on its disk, beside shards, to send them from there; never more than half of what is free; 0 for none"},
		{"down-after", kindDuration, "how long a node must have been unreachable before its shards are rebuilt on others"},
		{"reads", kindText, "what tags and lists are answered without a quorum: 503 (consistent), or what the node knows, with a Warning (available)"},
		{"shutdown-timeout", kindDuration, "how long running transfers may go on after a stop"},
		{"registry.listen", kindText, "address of the port for clients"},
		{"registry.url", kindText, "URL at which all clients reach that port, for redirects; without it none go to this node"},
		{"registry.redirect", kindText, "when a blob is read from the node that keeps it at hand, by a redirect: off, auto or always"},
		{"registry.redirect-min-bytes", kindBytes, "size from which a blob is worth a redirect"},
		{"registry.redirect-ttl", kindDuration, "how long a client may take to follow a redirect"},
		{"registry.trusted-proxies", kindList, "networks or addresses of balancers whose Forwarded and X-Forwarded headers count"},
		{"registry.require-index-children", kindBool, "refuse an image index that lists manifests which its repository does not have; by default they may come later or never"},
		{"registry.plain-http", kindBool, "speak plain HTTP with clients: behind a balancer that takes TLS off, or on one machine alone; otherwise a certificate must be given"},
		{"registry.tls.cert", kindText, "file with the certificate that clients see, and the chain behind it"},
		{"registry.tls.key", kindText, "file with that certificate's private key"},
		{"registry.tls.client-ca", kindText, "file with the authorities whose certificates clients may log in with; clients without one can use a password"},
		{"registry.tls.acme.domains", kindList, "host names for which the cluster gets its certificate from an authority (ACME), whose terms that accepts; port 443 of each must lead to the registry port of the nodes"},
		{"registry.tls.acme.email", kindText, "address that the authority may write to"},
		{"registry.tls.acme.directory", kindText, "URL of the authority's directory (default: Let's Encrypt)"},
		{"registry.tls.acme.ca", kindText, "file with the authorities that sign the certificate of the directory's own server (default: those of the system)"},
		{"auth.enabled", kindBool, "have clients log in, and do what the cluster's policy says; otherwise everybody may do everything"},
		{"auth.service", kindText, "the registry's name in tokens, the same on all nodes"},
		{"auth.realm", kindText, "URL of the token service as clients reach it (default: /token on the host that the client asked)"},
		{"auth.token-life", kindDuration, "how long a client can use a token"},
		{"auth.refresh-life", kindDuration, "how long a client can get further tokens without the password"},
		{"auth.htpasswd", kindText, "file with users besides the accounts, as htpasswd -B writes it, the same on all nodes"},
		{"auth.issuers", kindIssuers, "others whose OpenID Connect tokens count: issuer, audience, prefix, username-claim, groups-claim, required-claim of each"},
		{"audit.file", kindText, "file for the log of who did what, JSON lines, or - for standard output; it may be moved away at any time (default: none)"},
		{"audit.pulls", kindBool, "write down what is read, too"},
		{"cluster.listen", kindText, "address of the port for the other nodes"},
		{"cluster.address", kindText, "HOST:PORT at which the other nodes reach that port (default: the node's name and the port of cluster.listen)"},
		{"cluster.ca", kindText, "file with the cluster's certificate authority, with cluster.cert and cluster.key; without the three the cluster makes its certificates itself"},
		{"cluster.cert", kindText, "file with the node's certificate"},
		{"cluster.key", kindText, "file with the certificate's private key"},
		{"operations.listen", kindText, "address of the port for probes and metrics"},
		{"limits.connections", kindNumber, "how many connections clients may have open at a time; more are closed at once (default: half of the files that the process may open, at most 16384)"},
		{"limits.uploads", kindNumber, "how many requests may send blob bytes at once"},
		{"limits.pulls", kindNumber, "how many requests may receive blob bytes at once"},
		{"limits.requests-per-second", kindNumber, "how many requests without a body one client address may send in the long run, steps of an upload aside; 0 for no bound"},
		{"limits.request-burst", kindNumber, "how many of them it may send at once after a rest (default: 10 seconds' worth)"},
		{"limits.requests-per-client", kindNumber, "how many requests of one client address may run at once, while more wait; 0 for no bound"},
		{"limits.uploads-per-account", kindNumber, "how many uploads one account may have in progress; 0 for no bound"},
		{"limits.buffer-bytes", kindBytes, "memory for stripes in flight"},
		{"collect.grace", kindDuration, "how long a blob stays that no manifest refers to; longer than any push takes"},
		{"collect.untagged", kindDuration, "how long a manifest stays without a tag, an index or a subject; not shorter than collect.grace (default: for ever)"},
		{"collect.interval", kindDuration, "time between two rounds of collection"},
		{"scrub.period", kindDuration, "time in which the node reads all its shards once, looking for rot; 0 for only by atoll scrub"},
		{"scrub.bytes-per-second", kindBytes, "how fast it reads at most"},
		{"log.level", kindText, "lowest level that is logged: debug, info, warn or error"},
		{"log.format", kindText, "json, or console for people"},
	}
}

// flag is the setting's name on the command line: registry.listen is
// --registry-listen.
func (s setting) flag() string { return strings.ReplaceAll(s.key, ".", "-") }

// environment is the setting's environment variable: registry.listen is
// ATOLL_REGISTRY_LISTEN.
func (s setting) environment() string {
	return environmentPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(s.key))
}

// settingKind is how a setting is written.
type settingKind int

const (
	kindText settingKind = iota + 1
	kindList
	kindBool
	kindNumber
	kindBytes
	kindDuration
	kindIssuers
)

// String is what help calls the value.
func (k settingKind) String() string {
	return [...]string{"", "text", "list", "bool", "number", "bytes", "duration", "issuers"}[k]
}

// allowed completes the sentence "x is not ...".
func (k settingKind) allowed() string {
	return [...]string{
		"",
		"a text",
		"a list of texts",
		"true or false",
		"a whole number",
		"a number of bytes, like 1048576, 64MiB or 10GB",
		"a duration, like 500ms, 30s or 5m",
		"a list of issuers, like [{issuer: https://login.example, audience: registry, prefix: \"sso:\"}]",
	}[k]
}

// parse turns what YAML, the environment or the command line gave into the
// field's type.
func (k settingKind) parse(value any) (any, error) {
	var parsed any
	var err error
	switch k {
	case kindText:
		parsed, err = parseText(value)
	case kindList:
		parsed, err = parseList(value)
	case kindBool:
		parsed, err = parseBool(value)
	case kindNumber:
		parsed, err = parseNumber(value)
	case kindBytes:
		parsed, err = parseBytes(value)
	case kindDuration:
		parsed, err = parseDuration(value)
	case kindIssuers:
		parsed, err = parseIssuers(value)
	}
	if err != nil {
		if value == nil {
			return nil, fmt.Errorf("it has no value, but needs %s", k.allowed())
		}
		if text, ok := value.(string); ok {
			return nil, fmt.Errorf("%q is not %s", text, k.allowed())
		}
		return nil, fmt.Errorf("%v is not %s", value, k.allowed())
	}
	return parsed, nil
}

// format writes a default value the way it can be given.
func (k settingKind) format(value any) string {
	if k != kindBytes {
		return fmt.Sprint(value)
	}
	switch size := value.(type) {
	case int64:
		return binaryBytes(uint64(size))
	case uint64:
		return binaryBytes(size)
	}
	return fmt.Sprint(value)
}

// errValue says no more than that the value does not fit: parse says the rest.
var errValue = errors.New("value does not fit")

func parseText(value any) (any, error) {
	switch value := value.(type) {
	case string:
		return value, nil
	case int: // YAML takes "zone: 1" for a number
		return strconv.Itoa(value), nil
	}
	return nil, errValue
}

// parseList takes a YAML list, or texts separated by commas.
func parseList(value any) (any, error) {
	list := []string{}
	switch value := value.(type) {
	case string:
		for part := range strings.SplitSeq(value, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		return list, nil
	case []any:
		for _, part := range value {
			text, ok := part.(string)
			if !ok {
				return nil, errValue
			}
			list = append(list, text)
		}
		return list, nil
	}
	return nil, errValue
}

func parseBool(value any) (any, error) {
	switch value {
	case true, "true":
		return true, nil
	case false, "false":
		return false, nil
	}
	return nil, errValue
}

func parseNumber(value any) (any, error) {
	switch value := value.(type) {
	case int:
		return value, nil
	case string:
		return strconv.Atoi(strings.TrimSpace(value))
	}
	return nil, errValue
}

func parseBytes(value any) (any, error) {
	switch value := value.(type) {
	case int:
		if value >= 0 {
			return int64(value), nil
		}
	case string:
		return bytesOf(value)
	}
	return nil, errValue
}

func parseDuration(value any) (any, error) {
	if text, ok := value.(string); ok {
		return time.ParseDuration(strings.TrimSpace(text))
	}
	return nil, errValue
}

// parseIssuers takes a YAML list of maps, or a text with one, which can be JSON.
func parseIssuers(value any) (any, error) {
	if text, ok := value.(string); ok {
		wrapped, err := yaml.Parser().Unmarshal([]byte("list: " + text))
		if err != nil {
			return nil, errValue
		}
		value = wrapped["list"]
	}
	list, ok := value.([]any)
	if !ok {
		return nil, errValue
	}
	for _, entry := range list {
		fields, ok := entry.(map[string]any)
		if !ok {
			return nil, errValue
		}
		for key, field := range fields {
			_, text := field.(string)
			if !text || !slices.Contains([]string{"issuer", "audience", "username-claim", "groups-claim", "required-claim", "prefix"}, key) {
				return nil, errValue
			}
		}
	}
	return list, nil
}

// bytesOf reads a size with an optional unit; 1KB is 1000 bytes, 1KiB is 1024.
func bytesOf(text string) (int64, error) {
	units := []struct {
		suffix string
		bytes  int64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
		{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15},
		{"B", 1}, {"", 1},
	}
	text = strings.TrimSpace(text)
	for _, unit := range units {
		number, ok := strings.CutSuffix(text, unit.suffix)
		if !ok {
			continue
		}
		// A rational number, since "1.5TB" must be exact.
		size, ok := new(big.Rat).SetString(strings.TrimSpace(number))
		if !ok || strings.ContainsAny(number, "/eEpPxX_") || size.Sign() < 0 {
			return 0, errValue
		}
		size.Mul(size, new(big.Rat).SetInt64(unit.bytes))
		if !size.IsInt() || size.Cmp(new(big.Rat).SetInt64(math.MaxInt64)) > 0 {
			return 0, errValue
		}
		return size.Num().Int64(), nil
	}
	return 0, errValue
}
