package node

import (
	"strings"
	"testing"
	"time"
)

func validConfig() Config {
	cfg := DefaultConfig()
	cfg.Name, cfg.Data = "n1", []string{"/data"}
	cfg.Cluster.CA, cfg.Cluster.Cert, cfg.Cluster.Key = "ca", "cert", "key"
	cfg.Registry.PlainHTTP = true
	return cfg
}

func TestConfigFillsInWhatFollows(t *testing.T) {
	cfg := validConfig()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if cfg.Cluster.Address != "n1:5100" || cfg.registryURL() != "http://n1:5000" {
		t.Errorf("cluster.address %q, registry.url %q", cfg.Cluster.Address, cfg.registryURL())
	}
}

func TestRegistryURLFollowsTLS(t *testing.T) {
	cfg := validConfig()
	cfg.Registry.PlainHTTP, cfg.Registry.TLS = false, RegistryTLSConfig{Cert: "cert", Key: "key"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if cfg.registryURL() != "https://n1:5000" {
		t.Errorf("registry.url %q", cfg.registryURL())
	}
	cfg.Registry.TLS.Cert = ""
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "registry.tls.cert: ") {
		t.Errorf("a key without a certificate: %v", err)
	}
}

// Plain HTTP is spoken only when asked for.
func TestPlainHTTPIsAskedFor(t *testing.T) {
	for _, test := range []struct {
		plain bool
		tls   RegistryTLSConfig
		fault string
	}{
		{plain: true},
		{tls: RegistryTLSConfig{Cert: "cert", Key: "key"}},
		{tls: RegistryTLSConfig{Cert: "cert", Key: "key", ClientCA: "ca"}},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"registry.example.com", "a.example"}, Email: "ops@example.com", Directory: "https://ca.example/dir"}}},
		{fault: "registry.plain-http: true"},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Email: "ops@example.com"}}, fault: "registry.tls.acme.domains: no names given"},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"*.example.com"}}}, fault: `"*.example.com" is not a host name`},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"192.0.2.1"}}}, fault: `"192.0.2.1" is not a host name`},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"Registry.example"}}}, fault: `"Registry.example" is not a host name`},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"registry"}}}, fault: `"registry" is not a host name`},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: make([]string, maxACMEDomains+1)}}, fault: "101 names are more than"},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"a.example"}, Email: "ops"}}, fault: "registry.tls.acme.email: "},
		{tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"a.example"}, Directory: "http://ca.example"}}, fault: "registry.tls.acme.directory: "},
		{tls: RegistryTLSConfig{Cert: "cert", Key: "key", ACME: ACMEConfig{Domains: []string{"a.example"}}}, fault: "take out registry.tls.cert"},
		{plain: true, tls: RegistryTLSConfig{ACME: ACMEConfig{Domains: []string{"a.example"}}}, fault: "registry.plain-http: "},
		{tls: RegistryTLSConfig{ClientCA: "ca"}, fault: "registry.tls: no certificate given"},
		{plain: true, tls: RegistryTLSConfig{Cert: "cert", Key: "key"}, fault: "take out one of"},
		{plain: true, tls: RegistryTLSConfig{ClientCA: "ca"}, fault: "registry.tls.client-ca: "},
	} {
		cfg := validConfig()
		cfg.Registry.PlainHTTP, cfg.Registry.TLS = test.plain, test.tls
		err := cfg.Validate()
		if (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
			t.Errorf("%+v: %v, want %q", test, err, test.fault)
		}
	}
}

// Every fault is named by its key, all of them at once.
func TestConfigNamesEveryFault(t *testing.T) {
	cfg := validConfig()
	cfg.Name, cfg.Data = "N_1", nil
	cfg.Registry.Listen, cfg.Registry.URL = "5000", "ftp://n1"
	cfg.Registry.TLS.Cert = "cert"
	cfg.Registry.Redirect, cfg.Registry.RedirectMinBytes, cfg.Registry.RedirectTTL = "sometimes", 0, 0
	cfg.Registry.TrustedProxies = []string{"10.0.0.0/33"}
	cfg.Cluster.Address, cfg.Cluster.Key = ":5100", ""
	cfg.Join = []string{"n2"}
	cfg.Operations.Listen = "127.0.0.1:99999"
	cfg.Parity, cfg.DownAfter, cfg.ShutdownTimeout = 9, downSilence-1, 0
	cfg.Limits = LimitsConfig{Connections: -1, RequestsPerSecond: -1, RequestBurst: -1, RequestsPerClient: -1, UploadsPerAccount: -1}
	cfg.Auth = AuthConfig{Service: `"`, Realm: "login", RefreshLife: -1, Issuers: []IssuerConfig{{Issuer: "http://login.example", Prefix: "sso"}}}
	cfg.Collect = CollectConfig{Untagged: -1}
	cfg.Log = LogConfig{Level: "loud", Format: "xml"}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("the configuration was accepted")
	}
	for _, key := range []string{
		"name: ", "data: ", "registry.listen: ", "registry.url: ", "registry.tls.key: ",
		"registry.redirect: ", "registry.redirect-min-bytes: ", "registry.redirect-ttl: ", "registry.trusted-proxies: ", "cluster.address: ", "cluster.key: ", "join: ",
		"operations.listen: ", "parity: ", "down-after: ", "shutdown-timeout: ", "limits.connections: ", "limits.uploads: ", "limits.pulls: ", "limits.requests-per-second: ", "limits.request-burst: ", "limits.requests-per-client: ", "limits.uploads-per-account: ", "limits.buffer-bytes: ",
		"auth.service: ", "auth.realm: ", "auth.token-life: ", "auth.refresh-life: ", "auth.issuers: number 1: issuer: ", "auth.issuers: number 1: audience: ", "auth.issuers: number 1: prefix: ",
		"collect.grace: ", "collect.untagged: ", "collect.interval: ", "log.level: ", "log.format: ",
	} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("the error does not name %q:\n%v", key, err)
		}
	}
}

func TestUntaggedManifestsOutliveTheGrace(t *testing.T) {
	for _, untagged := range []time.Duration{0, time.Hour - 1, time.Hour} {
		cfg := validConfig()
		cfg.Collect.Grace, cfg.Collect.Untagged = time.Hour, untagged
		if err := cfg.Validate(); (err != nil) != (untagged == time.Hour-1) {
			t.Errorf("with collect.untagged %s: %v", untagged, err)
		}
	}
}

// A URL that is no place to send clients to is a fault.
func TestRegistryURL(t *testing.T) {
	for url, valid := range map[string]bool{
		"http://n1.example:5000": true, "https://n1.example/": true, "http://[::1]:5000": true,
		"http://:5000": false, "http://0.0.0.0:5000": false, "http://[::]:5000": false, "http://[::ffff:0.0.0.0]": false,
		"http://n1/registry": false, "http://n1?x=1": false, "http://me@n1": false, "http://n1:port": false, "n1:5000": false,
	} {
		cfg := validConfig()
		cfg.Registry.URL = url
		err := cfg.Validate()
		if (err == nil) != valid || err != nil && !strings.Contains(err.Error(), "registry.url: ") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestRedirectTTL(t *testing.T) {
	for ttl, valid := range map[time.Duration]bool{
		minRedirectTTL - 1: false, minRedirectTTL: true, maxRedirectTTL: true, maxRedirectTTL + 1: false,
	} {
		cfg := validConfig()
		cfg.Registry.RedirectTTL = ttl
		if err := cfg.Validate(); (err == nil) != valid || err != nil && !strings.Contains(err.Error(), "registry.redirect-ttl: ") {
			t.Errorf("%s: %v", ttl, err)
		}
	}
}

// Clients log in unless the operator says otherwise, and issuers are told apart.
func TestAuth(t *testing.T) {
	cfg := validConfig()
	if !cfg.Auth.Enabled {
		t.Error("nobody logs in by default")
	}
	good := IssuerConfig{Issuer: "https://login.example", Audience: "registry", Prefix: "sso:"}
	local := IssuerConfig{Issuer: "http://127.0.0.1:8080/realms/a", Audience: "registry", Prefix: "dev:"}
	cfg.Auth.Issuers = []IssuerConfig{good, local}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg.Auth.Issuers = []IssuerConfig{good, good}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "number 2: https://login.example is there twice") {
		t.Errorf("an issuer that is there twice: %v", err)
	}
	open := IssuerConfig{Issuer: "https://token.actions.githubusercontent.com", Audience: "registry", Prefix: "gh:"}
	for claim, want := range map[string]string{"": "everybody in the world", "repository_owner": "NAME=VALUE", "=x": "NAME=VALUE", "repository_owner=team": ""} {
		open.RequiredClaim = claim
		cfg.Auth.Issuers = []IssuerConfig{open}
		if err := cfg.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("required claim %q: %v", claim, err)
		}
	}
	for _, prefix := range []string{"sso:", "sso:staff:"} {
		local.Prefix = prefix
		for _, issuers := range [][]IssuerConfig{{good, local}, {local, good}} {
			cfg.Auth.Issuers = issuers
			if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "begin alike") {
				t.Errorf("prefixes %q and %q: %v", issuers[0].Prefix, issuers[1].Prefix, err)
			}
		}
	}
}
