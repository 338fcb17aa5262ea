package gateway

import (
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Config is how a gateway behaves. Zero fields take the defaults.
type Config struct {
	// Logger gets one line for each request. The zero Logger writes nothing.
	Logger zerolog.Logger
	// Metrics is where the gateway's metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// MaxConcurrentUploads bounds the requests that send blob bytes at once, each
	// of which holds buffers of the blob store. Default 256.
	MaxConcurrentUploads int
	// MaxConcurrentPulls bounds the requests that receive blob bytes at once.
	// Default 1024.
	MaxConcurrentPulls int
	// LimitWait is how long a request waits for its turn before it is refused
	// with 503 (uploads) or 429 (pulls). Default 10 s.
	LimitWait time.Duration
	// RequestsPerSecond is how many requests without a body one client address may
	// send in the long run; those beyond are refused with 429. Default 0: no bound.
	RequestsPerSecond int
	// RequestBurst is how many of them it may send at once after a rest. Default 10
	// seconds' worth.
	RequestBurst int
	// RequestsPerClient is how many requests of one client address may run at once; 0
	// for no bound. More wait for LimitWait before they are refused.
	RequestsPerClient int
	// RequireIndexChildren refuses image indexes that list manifests which are not in
	// the repository. By default they may be pushed later, or never: a sparse index is
	// what a copy of some platforms has.
	RequireIndexChildren bool
	// IdleTimeout is how long a client may take to send 16 KiB, or what is left, and to
	// receive 64 KiB. A transfer that moves may last for ever. Default 60 s.
	IdleTimeout time.Duration
	// ManifestTimeout is how long a client may take to send a whole manifest,
	// which is kept in memory meanwhile. Default 60 s.
	ManifestTimeout time.Duration
	// ManifestBufferBytes bounds the manifests in memory at once while they are
	// pushed. Parsing takes several times that. At least MaxManifestBytes; default
	// 16 MiB.
	ManifestBufferBytes int64
	// Homes knows which node a blob is best read from. Nil for no redirects.
	Homes Homes
	// Redirect is when blobs are read from another node by a redirect. Default
	// RedirectAuto.
	Redirect RedirectMode
	// RedirectMinBytes is the size from which a blob is worth it. Default 1 MiB.
	RedirectMinBytes int64
	// RedirectTTL is how long a client may take to follow. Default 10 min.
	RedirectTTL time.Duration
	// TrustedProxies are the networks of proxies whose Forwarded and X-Forwarded
	// headers count.
	TrustedProxies []netip.Prefix
	// UploadsPerAccount is how many uploads one account may have in progress; 0 for no
	// bound.
	UploadsPerAccount int
	// Audit is where it is written down who did what; nil for nowhere. AuditPulls has
	// what is read written down too.
	Audit      *AuditLog
	AuditPulls bool
	// Auth is how clients log in. Nil lets everybody do everything.
	Auth *AuthConfig
}

// MaxManifestBytes is how large a manifest may be. Clients refuse larger ones
// (containerd and containers/image stop at 4 MiB), and a registry must take that
// much.
const MaxManifestBytes = 4 << 20

// DefaultConfig returns the configuration of a gateway that was told nothing.
func DefaultConfig() Config {
	return Config{
		Logger:               zerolog.Nop(),
		MaxConcurrentUploads: 256,
		MaxConcurrentPulls:   1024,
		LimitWait:            10 * time.Second,
		IdleTimeout:          60 * time.Second,
		ManifestTimeout:      60 * time.Second,
		ManifestBufferBytes:  16 << 20,
		Redirect:             RedirectAuto,
		RedirectMinBytes:     1 << 20,
		RedirectTTL:          10 * time.Minute,
	}
}

func (c Config) withDefaults() Config {
	d := DefaultConfig()
	c.MaxConcurrentUploads = positive(c.MaxConcurrentUploads, d.MaxConcurrentUploads)
	c.MaxConcurrentPulls = positive(c.MaxConcurrentPulls, d.MaxConcurrentPulls)
	c.LimitWait = positive(c.LimitWait, d.LimitWait)
	c.IdleTimeout = positive(c.IdleTimeout, d.IdleTimeout)
	c.ManifestTimeout = positive(c.ManifestTimeout, d.ManifestTimeout)
	c.ManifestBufferBytes = max(positive(c.ManifestBufferBytes, d.ManifestBufferBytes), MaxManifestBytes)
	c.RedirectMinBytes = positive(c.RedirectMinBytes, d.RedirectMinBytes)
	c.RedirectTTL = positive(c.RedirectTTL, d.RedirectTTL)
	if c.Redirect == "" {
		c.Redirect = d.Redirect
	}
	return c
}

// positive returns value, or fallback if value is not positive.
func positive[T int | int64 | time.Duration](value, fallback T) T {
	if value <= 0 {
		return fallback
	}
	return value
}
