package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/gateway"
)

// Config is everything an operator can set on a node. The koanf tags are the
// keys of the configuration file; the command line and the environment use the
// same words.
type Config struct {
	// Name is the operator's name for the node, unique in the cluster: lower-case
	// letters, digits and dashes, as in a host name. Default: the host name.
	Name string `koanf:"name"`
	// Data are the data folders. They are made when absent and belong to one process
	// at a time. The first has the Raft log, the state and shards, the others, each on
	// a disk of its own, have shards.
	Data []string `koanf:"data"`
	// Join lists cluster addresses (HOST:PORT) of the cluster's nodes, this one
	// included or not. On an empty data folder the node joins whichever of them
	// belongs to a cluster. If this node is itself the first of the list and all
	// the others answer that they belong to none, it forms the cluster.
	Join []string `koanf:"join"`
	// Bootstrap forms a new cluster of this one node on an empty data folder. It
	// does nothing on a folder that belongs to a cluster already.
	Bootstrap bool `koanf:"bootstrap"`
	// Token is a join token, by which a node without a certificate gets one from the
	// nodes of Join. It counts at the first start. Secret.
	Token string `koanf:"token"`
	// TokenFile is a file with a join token, in the place of Token: the command line of a
	// process is no secret.
	TokenFile string `koanf:"token-file"`
	// Zone is the failure zone: nodes in one zone may fail together.
	Zone string `koanf:"zone"`
	// Capacity is how many bytes the node offers for shards; 0 means the size of
	// the file system. It weighs the node in placement.
	Capacity uint64 `koanf:"capacity"`
	// Parity is m, the number of shards that may be lost; -1 takes it from the
	// number of nodes: 0 for one, 1 for two to four, 2 from five on.
	Parity int `koanf:"parity"`
	// ReserveBytes stays free on the data folder's file system, so that the Raft
	// log can always be written; 0 means 5 % of it, at most 4 GiB.
	ReserveBytes uint64 `koanf:"reserve-bytes"`
	// CacheBytes bounds the whole blobs that the node keeps, beside shards, to send them from its
	// own disk; 0 for none. They never take more than half of what is free.
	CacheBytes uint64 `koanf:"cache-bytes"`
	// DownAfter is how long a node must have been unreachable before its shards are
	// rebuilt on other nodes: longer than a restart or a short repair of the machine
	// takes. The leader's counts, so that it should be the same on all nodes.
	DownAfter time.Duration `koanf:"down-after"`
	// Reads is what tags and lists are answered without a quorum: nothing but 503
	// (consistent), or what this node knows, with a Warning (available).
	Reads string `koanf:"reads"`
	// ShutdownTimeout bounds how long running transfers may go on after the node
	// was told to stop.
	ShutdownTimeout time.Duration `koanf:"shutdown-timeout"`

	Registry   RegistryConfig   `koanf:"registry"`
	Auth       AuthConfig       `koanf:"auth"`
	Audit      AuditConfig      `koanf:"audit"`
	Cluster    ClusterConfig    `koanf:"cluster"`
	Operations OperationsConfig `koanf:"operations"`
	Limits     LimitsConfig     `koanf:"limits"`
	Collect    CollectConfig    `koanf:"collect"`
	Scrub      ScrubConfig      `koanf:"scrub"`
	Log        LogConfig        `koanf:"log"`
}

// RegistryConfig is about the port that clients use.
type RegistryConfig struct {
	// Listen is the address of the registry port.
	Listen string `koanf:"listen"`
	// URL is the base URL at which clients reach this node's registry port, other
	// than through a balancer. Blobs are redirected to it, so that it must work for
	// all clients. Without it nothing is redirected to this node.
	URL string `koanf:"url"`
	// Redirect is when a blob is read from its home, the node that keeps it at hand,
	// by a redirect: off, auto or always.
	Redirect string `koanf:"redirect"`
	// RedirectMinBytes is the size from which a blob is worth a redirect.
	RedirectMinBytes int64 `koanf:"redirect-min-bytes"`
	// RedirectTTL is how long a client may take to follow a redirect.
	RedirectTTL time.Duration `koanf:"redirect-ttl"`
	// TrustedProxies are the networks (CIDR) or addresses of balancers whose
	// Forwarded and X-Forwarded headers count.
	TrustedProxies []string `koanf:"trusted-proxies"`
	// RequireIndexChildren refuses image indexes that list manifests which are not in
	// the repository.
	RequireIndexChildren bool `koanf:"require-index-children"`
	// PlainHTTP has the registry port speak plain HTTP, so that everybody on the way
	// can read and change what passes, passwords included: for a balancer that takes
	// TLS off, on a network that is trusted, and for one machine alone.
	PlainHTTP bool `koanf:"plain-http"`
	// TLS is for a registry port that speaks TLS: all of them, unless PlainHTTP is set.
	TLS RegistryTLSConfig `koanf:"tls"`
}

// ClusterConfig is about the port that the nodes use among themselves. It
// speaks TLS 1.3 with certificates on both sides and nothing else. The cluster makes
// them itself, unless the three files are given.
type ClusterConfig struct {
	// Listen is the address of the cluster port.
	Listen string `koanf:"listen"`
	// Address is HOST:PORT at which the other nodes reach the cluster port.
	// Default: the node's name with the port of Listen.
	Address string `koanf:"address"`
	// CA is the file with the cluster's certificate authority, PEM.
	CA string `koanf:"ca"`
	// Cert is the file with this node's certificate, PEM.
	Cert string `koanf:"cert"`
	// Key is the file with the certificate's private key, PEM.
	Key string `koanf:"key"`
}

// OperationsConfig is about the port for probes and metrics.
type OperationsConfig struct {
	// Listen is the address of the operations port: /livez, /readyz, /metrics.
	Listen string `koanf:"listen"`
}

// LimitsConfig bounds what clients can make one node do at a time.
type LimitsConfig struct {
	// Connections is how many connections clients may have open at a time; 0 for half of
	// the files that the process may open, at most 16384.
	Connections int `koanf:"connections"`
	// Uploads is how many requests may send blob bytes at once.
	Uploads int `koanf:"uploads"`
	// Pulls is how many requests may receive blob bytes at once.
	Pulls int `koanf:"pulls"`
	// RequestsPerSecond is how many requests without a body one client address may
	// send in the long run; 0 for no bound. Steps of an upload do not count.
	RequestsPerSecond int `koanf:"requests-per-second"`
	// RequestBurst is how many of them it may send at once after a rest; 0 for 10
	// seconds' worth.
	RequestBurst int `koanf:"request-burst"`
	// RequestsPerClient is how many requests of one client address may run at once; 0
	// for no bound.
	RequestsPerClient int `koanf:"requests-per-client"`
	// UploadsPerAccount is how many uploads one account may have in progress; 0 for no
	// bound.
	UploadsPerAccount int `koanf:"uploads-per-account"`
	// BufferBytes bounds the memory for stripes in flight.
	BufferBytes int64 `koanf:"buffer-bytes"`
}

// CollectConfig is about what nothing refers to any more. The leader's counts, so
// that it should be the same on all nodes.
type CollectConfig struct {
	// Grace is how long a blob stays that no manifest refers to. A push must not
	// take longer from its first blob to its manifest.
	Grace time.Duration `koanf:"grace"`
	// Untagged is how long a manifest stays that no tag points at, no image index
	// lists, and that is no referrer of a manifest that is there; 0 keeps them. Not
	// shorter than Grace, for the same reason.
	Untagged time.Duration `koanf:"untagged"`
	// Interval is the time between two rounds of collection.
	Interval time.Duration `koanf:"interval"`
}

// ScrubConfig is about reading shards again before anybody asks for them.
type ScrubConfig struct {
	// Period is the time in which the node reads all its shards once; 0 for only when
	// it is told to.
	Period time.Duration `koanf:"period"`
	// BytesPerSecond is how fast it reads at most.
	BytesPerSecond uint64 `koanf:"bytes-per-second"`
}

// LogConfig is about the node's own log.
type LogConfig struct {
	// Level is the lowest level that is written: debug, info, warn or error.
	Level string `koanf:"level"`
	// Format is json, or console for people.
	Format string `koanf:"format"`
}

// Values of Config.Reads.
const (
	ReadsConsistent = "consistent"
	ReadsAvailable  = "available"
)

// Ports by default. Operators and firewalls know them; they are part of the
// interface.
const (
	DefaultRegistryPort   = 5000
	DefaultClusterPort    = 5100
	DefaultOperationsPort = 5200
)

// DefaultConfig returns the configuration of a node that was told nothing.
// Name, Data and the cluster certificates have no usable default.
func DefaultConfig() Config {
	return Config{
		Parity:          -1,
		CacheBytes:      32 << 30,
		DownAfter:       5 * time.Minute,
		Reads:           ReadsConsistent,
		ShutdownTimeout: 30 * time.Second,
		Registry: RegistryConfig{
			Listen: fmt.Sprintf(":%d", DefaultRegistryPort), Redirect: string(gateway.RedirectAuto),
			RedirectMinBytes: 1 << 20, RedirectTTL: 10 * time.Minute,
		},
		Auth:       defaultAuth(),
		Cluster:    ClusterConfig{Listen: fmt.Sprintf(":%d", DefaultClusterPort)},
		Operations: OperationsConfig{Listen: fmt.Sprintf("127.0.0.1:%d", DefaultOperationsPort)},
		Limits:     LimitsConfig{Uploads: 256, Pulls: 1024, UploadsPerAccount: 1000, BufferBytes: 64 << 20},
		Collect:    CollectConfig{Grace: 24 * time.Hour, Interval: time.Minute},
		Scrub:      ScrubConfig{Period: 14 * 24 * time.Hour, BytesPerSecond: 64 << 20},
		Log:        LogConfig{Level: "info", Format: "json"},
	}
}

// nodeName is what names may look like: a host name's label.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate fills in what follows from other settings and returns all faults,
// joined, each naming its key.
func (c *Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	if !nodeName.MatchString(c.Name) {
		fault("name: %q is not a node name: lower-case letters, digits and dashes, at most 63, as in a host name", c.Name)
	}
	faults = append(faults, c.validateData()...)
	for key, address := range map[string]string{
		"registry.listen": c.Registry.Listen, "cluster.listen": c.Cluster.Listen, "operations.listen": c.Operations.Listen,
	} {
		if err := checkAddress(address, true); err != nil {
			fault("%s: %w", key, err)
		}
	}
	faults = append(faults, c.validateCluster()...)
	faults = append(faults, c.Registry.validate()...)
	faults = append(faults, c.Auth.validate()...)
	if c.Parity < -1 || c.Parity > 4 {
		fault("parity: %d is not -1 (automatic) or 0 to 4", c.Parity)
	}
	if c.DownAfter < downSilence {
		fault("down-after: %s is less than %s, in which a node that has only stalled may answer again", c.DownAfter, downSilence)
	}
	if c.Reads != ReadsConsistent && c.Reads != ReadsAvailable {
		fault("reads: %q is not %s or %s", c.Reads, ReadsConsistent, ReadsAvailable)
	}
	if c.ShutdownTimeout <= 0 {
		fault("shutdown-timeout: %s is not a positive duration", c.ShutdownTimeout)
	}
	faults = append(faults, c.Limits.validate()...)
	faults = append(faults, c.Collect.validate()...)
	if c.Scrub.Period < 0 {
		fault("scrub.period: %s is neither 0, to scrub only on request, nor a positive duration", c.Scrub.Period)
	}
	if c.Scrub.BytesPerSecond < 1<<20 {
		fault("scrub.bytes-per-second: %d is less than 1 MiB", c.Scrub.BytesPerSecond)
	}
	if _, err := zerolog.ParseLevel(c.Log.Level); err != nil || c.Log.Level == "" {
		fault("log.level: %q is not debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "json" && c.Log.Format != "console" {
		fault("log.format: %q is not json or console", c.Log.Format)
	}
	return errors.Join(faults...)
}

func (c *LimitsConfig) validate() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Connections < 0 {
		fault("limits.connections: %d is negative", c.Connections)
	}
	if c.Uploads < 1 {
		fault("limits.uploads: %d is not at least 1", c.Uploads)
	}
	if c.Pulls < 1 {
		fault("limits.pulls: %d is not at least 1", c.Pulls)
	}
	if c.RequestsPerSecond < 0 {
		fault("limits.requests-per-second: %d is negative", c.RequestsPerSecond)
	}
	if c.RequestBurst < 0 {
		fault("limits.request-burst: %d is negative", c.RequestBurst)
	}
	if c.RequestsPerClient < 0 {
		fault("limits.requests-per-client: %d is negative", c.RequestsPerClient)
	}
	if c.UploadsPerAccount < 0 {
		fault("limits.uploads-per-account: %d is negative", c.UploadsPerAccount)
	}
	if c.BufferBytes < 16<<20 {
		fault("limits.buffer-bytes: %d is less than 16 MiB, which one wide upload can need", c.BufferBytes)
	}
	return faults
}

func (c *CollectConfig) validate() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Grace <= 0 {
		fault("collect.grace: %s is not a positive duration", c.Grace)
	}
	if c.Untagged < 0 {
		fault("collect.untagged: %s is neither 0, to keep untagged manifests, nor a positive duration", c.Untagged)
	}
	if c.Untagged > 0 && c.Untagged < c.Grace {
		fault("collect.untagged: %s is shorter than collect.grace, %s: a manifest could go before the image index that lists it is pushed",
			c.Untagged, c.Grace)
	}
	if c.Interval <= 0 {
		fault("collect.interval: %s is not a positive duration", c.Interval)
	}
	return faults
}

func (c *Config) validateCluster() (faults []error) {
	if c.Cluster.Address == "" {
		if _, port, err := net.SplitHostPort(c.Cluster.Listen); err == nil {
			c.Cluster.Address = net.JoinHostPort(c.Name, port)
		}
	}
	if err := checkAddress(c.Cluster.Address, false); err != nil {
		faults = append(faults, fmt.Errorf("cluster.address: %w", err))
	}
	for _, address := range c.Join {
		if err := checkAddress(address, false); err != nil {
			faults = append(faults, fmt.Errorf("join: %w", err))
		}
	}
	return append(append(faults, c.validateFiles()...), c.validateToken()...)
}

// validateFiles wants all files of a certificate or none.
func (c *Config) validateFiles() (faults []error) {
	if c.Cluster.CA == "" && c.Cluster.Cert == "" && c.Cluster.Key == "" {
		return nil
	}
	for key, file := range map[string]string{"cluster.ca": c.Cluster.CA, "cluster.cert": c.Cluster.Cert, "cluster.key": c.Cluster.Key} {
		if file == "" {
			faults = append(faults, fmt.Errorf("%s: no file given: cluster.ca, cluster.cert and cluster.key go together ('atoll certs' makes them), or none of them for certificates of the cluster's own", key))
		}
	}
	return faults
}

func (c *Config) validateToken() (faults []error) {
	if c.Token == "" && c.TokenFile == "" {
		return nil
	}
	if c.Token != "" && c.TokenFile != "" {
		faults = append(faults, errors.New("token: there is a token-file as well: give one of the two"))
	}
	if c.Cluster.CA != "" {
		faults = append(faults, errors.New("token: a join token is of no use with certificates from files (cluster.ca, cluster.cert, cluster.key): leave out one or the other"))
	}
	if len(c.Join) == 0 {
		faults = append(faults, errors.New("join: no address given of a node of the cluster, which the join token is for"))
	}
	if c.Token != "" {
		if _, err := parseJoinToken(c.Token); err != nil {
			faults = append(faults, fmt.Errorf("token: %w", err))
		}
	}
	return faults
}

// checkAddress accepts HOST:PORT; only an address to listen on may lack a host.
func checkAddress(address string, listen bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || (n == 0 && !listen) {
		return fmt.Errorf("%q has no port between 1 and 65535", address)
	}
	if host == "" && !listen {
		return fmt.Errorf("%q has no host", address)
	}
	return nil
}

const (
	// minRedirectTTL leaves a client time to follow.
	minRedirectTTL = 5 * time.Second
	// maxRedirectTTL bounds how long whoever has seen a signed URL can read the blob.
	// Keys live for much longer.
	maxRedirectTTL = 24 * time.Hour
)

func (c *RegistryConfig) validate() (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		fault("registry.url: %q is not an http or https URL", c.URL)
	case !isDestination(u.Hostname()):
		fault("registry.url: %q names no host that a client could connect to", c.URL)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		fault("registry.url: %q has more than a scheme, a host and a port", c.URL)
	}
	if !slices.Contains([]gateway.RedirectMode{gateway.RedirectOff, gateway.RedirectAuto, gateway.RedirectAlways}, gateway.RedirectMode(c.Redirect)) {
		fault("registry.redirect: %q is not off, auto or always", c.Redirect)
	}
	if c.RedirectMinBytes < 1 {
		fault("registry.redirect-min-bytes: %d is not at least 1", c.RedirectMinBytes)
	}
	if c.RedirectTTL < minRedirectTTL {
		fault("registry.redirect-ttl: %s is less than %s, in which a client has to follow", c.RedirectTTL, minRedirectTTL)
	}
	if c.RedirectTTL > maxRedirectTTL {
		fault("registry.redirect-ttl: %s is more than %s", c.RedirectTTL, maxRedirectTTL)
	}
	if _, err := c.trustedProxies(); err != nil {
		faults = append(faults, err)
	}
	return append(faults, c.validateTLS()...)
}

// isDestination says whether a host can be connected to: 0.0.0.0 and :: can only
// be listened on.
func isDestination(host string) bool {
	address, err := netip.ParseAddr(host)
	return host != "" && (err != nil || !address.Unmap().IsUnspecified())
}

// trustedProxies reads the networks of TrustedProxies. A single address is a
// network of its own.
func (c *RegistryConfig) trustedProxies() (networks []netip.Prefix, err error) {
	for _, text := range c.TrustedProxies {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			address, addressErr := netip.ParseAddr(text)
			if addressErr != nil {
				return nil, fmt.Errorf("registry.trusted-proxies: %q is not a network, like 10.0.0.0/8, or an address", text)
			}
			network = netip.PrefixFrom(address, address.BitLen())
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// registryURL is where the registry port is: what the operator says, or else what
// follows from the addresses.
func (c *Config) registryURL() string {
	if c.Registry.URL != "" {
		return c.Registry.URL
	}
	return defaultRegistryURL(c.Registry.scheme(), c.Cluster.Address, c.Registry.Listen)
}

func defaultRegistryURL(scheme, clusterAddress, listen string) string {
	host, _, err := net.SplitHostPort(clusterAddress)
	if err != nil {
		return ""
	}
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
