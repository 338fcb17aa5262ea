package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/node"
)

const (
	// maxDevNodes keeps the ports of the nodes apart: see portsOf.
	maxDevNodes     = 9
	defaultDevNodes = 3
	// defaultDevListen has the port that people expect of a registry.
	defaultDevListen = "127.0.0.1:5000"
	// Distances of the nodes' ports from the balancer's: with port 5000, node 1
	// has 5001, 5101 and 5201.
	clusterPortOffset    = 100
	operationsPortOffset = 200
	// devHost is where the nodes listen. They are for this machine; only the
	// balancer may be opened to others.
	devHost = "127.0.0.1"
	// devShutdownTimeout is the time to finish transfers on Ctrl-C.
	devShutdownTimeout = 10 * time.Second
)

// devOwnSettings are those that argv gives each node.
var devOwnSettings = []string{
	"name", "data", "join", "bootstrap", "token", "token-file", "auth.enabled", "registry.listen", "registry.url", "registry.plain-http", "registry.tls.cert", "registry.tls.key",
	"cluster.listen", "cluster.address", "cluster.ca", "cluster.cert", "cluster.key", "operations.listen",
}

// devPlan is the cluster that dev runs: everything that follows from the flags.
type devPlan struct {
	// listen is the balancer's address; url is how clients on this machine reach it.
	listen, url string
	// dir is the absolute data folder.
	dir   string
	nodes []devNodePlan
	// auth has clients log in, by TLS with the certificate, which is empty otherwise.
	auth        bool
	certificate node.RegistryCertificate
	// settings are flags of serve that all nodes get.
	settings []string
}

// devNodePlan is one node of it. All addresses are HOST:PORT.
type devNodePlan struct {
	name                          string
	registry, cluster, operations string
	data                          string
	certificate                   node.NodeCertificate
}

// plan completes what the flags say with what the folder holds. A cluster keeps
// its nodes, since none may be lost, and their ports, since that is where they look
// for each other.
func (c devConfig) plan() (devPlan, error) {
	last, err := readDevFile(c.data)
	if err != nil {
		return devPlan{}, err
	}
	before, auth := strings.CutPrefix(last.Registry, "https://")
	before = strings.TrimPrefix(before, "http://")
	if c.auth != nil {
		auth = *c.auth
	}
	nodes := cmp.Or(c.nodes, len(last.Nodes), defaultDevNodes)
	listen := cmp.Or(c.listen, before, defaultDevListen)
	if nodes < len(last.Nodes) {
		return devPlan{}, fmt.Errorf("--nodes: %s holds the data of %d nodes, and a cluster must not lose any: start all of them, or choose another --data",
			c.data, len(last.Nodes))
	}
	plan, err := planDev(listen, c.data, nodes, auth)
	if err != nil {
		return devPlan{}, err
	}
	if plan.settings, err = devSettings(c.set); err != nil {
		return devPlan{}, err
	}
	if len(last.Nodes) > 0 && last.Nodes[0].Cluster != plan.nodes[0].cluster {
		return devPlan{}, fmt.Errorf("--listen: the nodes in %s look for each other at the ports that they had with %s: keep that port, or choose another --data",
			c.data, before)
	}
	return plan, nil
}

// devSettings turns the KEY=VALUE of --set into flags of serve. What is different
// on each node is not for everybody to choose.
func devSettings(set []string) (flags []string, err error) {
	for _, text := range set {
		key, value, found := strings.Cut(text, "=")
		if !found {
			return nil, fmt.Errorf("--set: %q is not KEY=VALUE", text)
		}
		known := settings()
		i := slices.IndexFunc(known, func(s setting) bool { return s.key == key })
		if i < 0 {
			return nil, fmt.Errorf("--set: %w", unknown("key", key, settingNames(func(s setting) string { return s.key })))
		}
		if slices.Contains(devOwnSettings, key) {
			return nil, fmt.Errorf("--set: dev itself chooses %s, for each node its own", key)
		}
		if _, err := known[i].kind.parse(value); err != nil {
			return nil, fmt.Errorf("--set: %s: %w", key, err)
		}
		flags = append(flags, "--"+known[i].flag()+"="+value)
	}
	return flags, nil
}

// planDev works out names, ports and folders.
func planDev(listen, dir string, nodes int, auth bool) (devPlan, error) {
	if nodes < 1 || nodes > maxDevNodes {
		return devPlan{}, fmt.Errorf("--nodes: %d is not 1 to %d", nodes, maxDevNodes)
	}
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return devPlan{}, fmt.Errorf("--listen: %q is not HOST:PORT", listen)
	}
	highest := 65535 - operationsPortOffset - nodes
	port, err := strconv.Atoi(portText)
	if err != nil || port < 1 || port > highest {
		return devPlan{}, fmt.Errorf("--listen: %q has no port between 1 and %d (the nodes take the ports up to %d above it)",
			listen, highest, operationsPortOffset+nodes)
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return devPlan{}, fmt.Errorf("--data: %w", err)
	}
	plan := devPlan{listen: listen, dir: absolute, auth: auth}
	plan.url = plan.scheme() + "://" + net.JoinHostPort(reachable(host), portText)
	address := func(port int) string { return net.JoinHostPort(devHost, strconv.Itoa(port)) }
	for i := 1; i <= nodes; i++ {
		name := fmt.Sprintf("n%d", i)
		plan.nodes = append(plan.nodes, devNodePlan{
			name:       name,
			registry:   address(port + i),
			cluster:    address(port + clusterPortOffset + i),
			operations: address(port + operationsPortOffset + i),
			data:       filepath.Join(absolute, name),
		})
	}
	return plan, nil
}

// scheme is how clients speak to the balancer and the nodes.
func (p devPlan) scheme() string {
	if p.auth {
		return "https"
	}
	return "http"
}

// host is HOST:PORT of the balancer as this machine reaches it.
func (p devPlan) host() string { return strings.TrimPrefix(p.url, p.scheme()+"://") }

// reachable is a host at which this machine reaches what listens on host.
func reachable(host string) string {
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return devHost
	}
	return host
}

// claimPorts opens the balancer's port and sees to it that the nodes' ports are
// free, so that a busy one is known before anything has started.
func (p devPlan) claimPorts() (net.Listener, error) {
	balancer, err := net.Listen("tcp", p.listen)
	faults := []error{portFault(p.listen, "for clients", err)}
	for _, n := range p.nodes {
		for _, port := range []struct{ address, use string }{
			{n.registry, "the registry port of " + n.name},
			{n.cluster, "the cluster port of " + n.name},
			{n.operations, "the operations port of " + n.name},
		} {
			probe, err := net.Listen("tcp", port.address)
			if err == nil {
				err = probe.Close()
			}
			faults = append(faults, portFault(port.address, port.use, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		if balancer != nil {
			balancer.Close()
		}
		return nil, fmt.Errorf("%w\nstop what uses it, or choose other ports with --listen HOST:PORT", err)
	}
	return balancer, nil
}

func portFault(address, use string, err error) error {
	if err == nil {
		return nil
	}
	_, port, splitErr := net.SplitHostPort(address)
	if splitErr != nil {
		port = address
	}
	return fmt.Errorf("port %s (%s) is not free: %w", port, use, err)
}

// makeCertificates gives every node of the plan its certificate.
func (p *devPlan) makeCertificates() error {
	var names []string
	for _, n := range p.nodes {
		names = append(names, n.name)
	}
	made, err := node.MakeCertificates(node.CertificatesConfig{Dir: filepath.Join(p.dir, "certs"), Nodes: names})
	if err != nil {
		return err
	}
	for i := range p.nodes {
		p.nodes[i].certificate = made[i]
	}
	return nil
}

// makeRegistryCertificate makes what clients see, the same on all nodes.
func (p *devPlan) makeRegistryCertificate() (err error) {
	host, _, err := net.SplitHostPort(p.host())
	if err != nil {
		return err
	}
	hosts := []string{devHost, "::1", "localhost"}
	if !slices.Contains(hosts, host) {
		hosts = append(hosts, host)
	}
	p.certificate, err = node.MakeRegistryCertificate(filepath.Join(p.dir, "registry"), hosts)
	return err
}

// argv is the command line of one node. It can be run by hand as well, from any
// folder.
func (p devPlan) argv(executable string, n devNodePlan) []string {
	argv := []string{
		executable, "serve",
		"--name=" + n.name,
		"--data=" + n.data,
		"--registry-listen=" + n.registry,
		"--registry-url=" + p.scheme() + "://" + n.registry,
		"--cluster-listen=" + n.cluster,
		"--cluster-address=" + n.cluster,
		"--cluster-ca=" + n.certificate.CA,
		"--cluster-cert=" + n.certificate.Cert,
		"--cluster-key=" + n.certificate.Key,
		"--operations-listen=" + n.operations,
		"--shutdown-timeout=" + devShutdownTimeout.String(),
	}
	if p.auth {
		argv = append(argv, "--registry-tls-cert="+p.certificate.Cert, "--registry-tls-key="+p.certificate.Key)
	} else {
		argv = append(argv, "--registry-plain-http", "--auth-enabled=false")
	}
	for _, other := range p.nodes {
		argv = append(argv, "--join="+other.cluster)
	}
	if len(p.nodes) == 1 {
		argv = append(argv, "--bootstrap") // nobody else is there to ask for the cluster
	}
	return append(argv, p.settings...)
}
