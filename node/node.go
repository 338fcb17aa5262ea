// Package node is one atoll process: it puts the layers together in the order
// in which they depend on each other, brings the node into its cluster, watches
// the other nodes, and takes everything down in reverse order. It has no domain
// logic.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/gateway"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// Node is one process of the cluster.
type Node struct {
	cfg  Config
	log  zerolog.Logger
	dial Dialer

	// fatal carries the error after which the node must not go on.
	fatal chan error

	// tune changes the blob store's configuration; nil for not at all.
	tune func(*blobstore.Config)
	// lifetime is that of certificates that this node signs.
	lifetime time.Duration
	// seams are where tests get in between the parts.
	seams Seams
	// opened is what Run works with, nil until it is open.
	opened atomic.Pointer[parts]
}

// Option changes what a node is built from; tests use them.
type Option func(*Node)

// WithDialer replaces how the node opens connections to other nodes.
func WithDialer(dial Dialer) Option { return func(n *Node) { n.dial = dial } }

// WithBlobstore changes the configuration of the blob store.
func WithBlobstore(tune func(*blobstore.Config)) Option { return func(n *Node) { n.tune = tune } }

// WithCertificateLifetime changes for how long the node signs certificates of the
// cluster's own.
func WithCertificateLifetime(lifetime time.Duration) Option {
	return func(n *Node) { n.lifetime = lifetime }
}

// New returns a node that Run starts. It touches neither disk nor network.
func New(cfg Config, log zerolog.Logger, options ...Option) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	n := &Node{
		cfg:   cfg,
		log:   log.With().Str("node", cfg.Name).Logger(),
		dial:  (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		fatal: make(chan error, 1), lifetime: issuedLifetime,
	}
	for _, option := range options {
		option(n)
	}
	return n, nil
}

// ErrFatal marks an error of Run after which the process must end at once,
// without an orderly stop: its disk or its state can't be trusted.
var ErrFatal = errors.New("node can't go on")

// die reports a fatal error and never returns to its caller, who must not go on
// as if the error had not happened.
func (n *Node) die(err error) {
	select {
	case n.fatal <- fmt.Errorf("%w: %w", ErrFatal, err):
	default: // the first one counts
	}
	select {}
}

// Run starts the node and blocks until ctx ends, and the node has stopped in
// order, or until the node can't go on.
func (n *Node) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- n.serve(ctx) }() // the receive below waits for it
	select {
	case err := <-done:
		return err
	case err := <-n.fatal:
		return err // nothing is closed: that could hang on the same disk
	}
}

// serve opens the node and runs it until ctx ends. A fatal error keeps it from coming back.
func (n *Node) serve(ctx context.Context) error {
	p, err := n.open(ctx)
	if err != nil {
		return err
	}
	n.opened.Store(p)
	return errors.Join(p.run(ctx), p.close())
}

// Metadata gives tests the state of a running node; nil before it is open.
func (n *Node) Metadata() *metadata.Store {
	if p := n.opened.Load(); p != nil {
		return p.store
	}
	return nil
}

// ID is the node's id, a UUID; empty before it is open.
func (n *Node) ID() string {
	if p := n.opened.Load(); p != nil {
		return p.self.Id
	}
	return ""
}

// parts is a node that is open: everything that has to be closed again.
type parts struct {
	cfg Config
	log zerolog.Logger

	folder    *dataFolder
	knownID   string // cluster that the folder named when it was opened
	listeners listeners
	cluster   *clusterListener
	// keys are nil with certificates from files.
	keys     *keyring
	lifetime time.Duration // of certificates that this node signs
	gate     *gate
	// published has a token when the records may have changed that the gate goes by.
	published chan struct{}
	pool      *connPool
	machine   *metadata.Machine
	store     *metadata.Store
	replica   *consensus.Replica
	blobs     *blobstore.Store
	eraLength time.Duration // of leadership
	peers     *peers
	ready     *readiness
	self      *atoll.Node
	rpc       *grpc.Server
	links     *blobstore.LinkServer
	metrics   *prometheus.Registry
	handler   http.Handler // of clients' requests
	registry  *http.Server
	// certificates is what clients see, clientAuthority what theirs are held against; nil
	// without.
	certificates    gateway.Certificates
	clientAuthority *gateway.ClientAuthority
	// acme are the certificates if an authority on the network signs them; else nil.
	acme *gateway.ACME
	// htpasswd are users of a file; nil without one.
	htpasswd *gateway.Htpasswd
	// audit is the log of who did what; nil for none.
	audit *gateway.AuditLog

	closers []func() error // in the order of opening
}

// listeners are opened once the data folder is locked, so that a second process
// of the same node is told of that and not of its ports, and before anything in
// the folder is.
type listeners struct{ registry, cluster, operations net.Listener }

// open builds the node from the disk up. What was opened before an error is
// closed again.
func (n *Node) open(ctx context.Context) (p *parts, err error) {
	p = &parts{cfg: n.cfg, log: n.log, lifetime: n.lifetime, published: make(chan struct{}, 1), metrics: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if p.folder, err = openDataFolder(n.cfg.Home(), n.cfg.Name); err != nil {
		return p, err
	}
	p.closers = append(p.closers, p.folder.Close)
	if err := p.folder.checkRecovered(); err != nil {
		return p, err
	}
	p.knownID = p.folder.identity.ClusterID
	identity, keys, err := n.openIdentity(ctx, p.folder)
	if err != nil {
		return p, err
	}
	p.keys, identity.log = keys, p.component("cluster")
	if err := p.listen(); err != nil {
		return p, err
	}
	if p.self, err = n.describe(p.folder); err != nil {
		return p, err
	}
	p.cluster = newClusterListener(p.listeners.cluster, identity, n.dial, p.component("cluster"))
	p.closers = append(p.closers, p.cluster.Close)
	if err := p.openMetadata(n, identity); err != nil {
		return p, err
	}
	return p, p.openServices(n)
}

func (p *parts) component(name string) zerolog.Logger {
	return p.log.With().Str("component", name).Logger()
}

func (p *parts) listen() error {
	for _, l := range []struct {
		key, address string
		listener     *net.Listener
	}{
		{"registry.listen", p.cfg.Registry.Listen, &p.listeners.registry},
		{"cluster.listen", p.cfg.Cluster.Listen, &p.listeners.cluster},
		{"operations.listen", p.cfg.Operations.Listen, &p.listeners.operations},
	} {
		listener, err := net.Listen("tcp", l.address)
		if err != nil {
			return fmt.Errorf("%s: %w", l.key, err)
		}
		*l.listener = listener
		p.closers = append(p.closers, func() error { return ignoreClosed(listener.Close()) })
	}
	return nil
}

// describe makes the node's own record.
func (n *Node) describe(folder *dataFolder) (*atoll.Node, error) {
	capacity := n.cfg.Capacity
	if capacity == 0 {
		var fs unix.Statfs_t
		if err := unix.Statfs(folder.path, &fs); err != nil {
			return nil, fmt.Errorf("measure data folder: %w", err)
		}
		capacity = fs.Blocks * uint64(fs.Bsize)
	}
	return &atoll.Node{
		Id: folder.identity.ID, Name: n.cfg.Name, Zone: n.cfg.Zone,
		ClusterAddress: n.cfg.Cluster.Address, RegistryUrl: n.cfg.registryURL(), RedirectUrl: n.cfg.Registry.URL, OperationsAddress: n.cfg.Operations.Listen,
		CapacityBytes: capacity, State: atoll.NodeState_NODE_STATE_ACTIVE,
	}, nil
}

// openMetadata opens the state machine and the Raft replica under it.
func (p *parts) openMetadata(n *Node, identity *clusterTLS) (err error) {
	dir := p.folder.path
	// Each record has a checksum, but where a key, or a page that leads to it, has rotted, a record is not
	// found, and clients would be told that what they have pushed is not there. So all is read first.
	p.machine, err = metadata.OpenMachine(metadata.MachineConfig{
		Dir: filepath.Join(dir, stateDir), Logger: p.component("metadata"), Fatal: n.die, Published: p.notePublished, Verify: true,
	})
	if errors.Is(err, metadata.ErrCorrupt) {
		err = fmt.Errorf("%w; start the node on an empty data folder: it gets everything from the others", err)
	}
	if err != nil {
		return err
	}
	p.closers = append(p.closers, p.closeMachine)
	if err := p.openGate(); err != nil {
		return err
	}
	p.pool = newConnPool(identity, n.dial, p.clusterID, func(address string) certified { return nodeAt(p.machine.Nodes(), address) })
	p.closers = append(p.closers, p.pool.Close)

	cfg := consensusConfig(p.folder, p.self.ClusterAddress, n.die)
	cfg.Logger, cfg.GroupID, cfg.Holds = p.component("consensus"), p.clusterID, p.gate.holdsConn
	cfg.MustHaveState = p.folder.identity.ClusterID != "" && !p.folder.identity.Rejoining
	p.replica, err = consensus.Open(cfg, through[consensus.StateMachine](n.seams.Machine, p.machine), raftNetwork{&p.cluster.raft, p.pool})
	if err != nil {
		return err
	}
	p.closers = append(p.closers, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), p.cfg.ShutdownTimeout)
		defer cancel()
		return p.replica.Close(ctx)
	})
	p.store = metadata.NewStore(p.machine, through[metadata.Log](n.seams.Log, p.replica), metadata.StoreConfig{
		Logger: p.component("metadata"), BlobGrace: p.cfg.Collect.Grace, UntaggedAge: p.cfg.Collect.Untagged, ExpireInterval: p.cfg.Collect.Interval,
		AvailableReads: p.cfg.Reads == ReadsAvailable,
	})
	return nil
}

// closeMachine closes the state, unless the disk hangs: it then goes back to its last sync at the next start.
func (p *parts) closeMachine() error {
	closed := make(chan error, 1)
	go func() { closed <- p.machine.Close() }() // ends with the disk's answer
	select {
	case err := <-closed:
		return err
	case <-time.After(p.cfg.ShutdownTimeout):
		return fmt.Errorf("close state: the disk has not answered for %s", p.cfg.ShutdownTimeout)
	}
}

// notePublished is told by the state machine, which it must not hold up.
func (p *parts) notePublished() {
	select {
	case p.published <- struct{}{}:
	default: // the gate is going to look anyway
	}
}

// openGate has the records decide what other nodes may do, and whom this one trusts.
func (p *parts) openGate() error {
	p.gate = newGate(p.machine.Nodes, p.published, p.component("cluster"))
	p.gate.inGroup = func(id string) bool { return isMember(p.replica, id) }
	p.gate.cluster, p.gate.keys, p.gate.authority = p.cluster, p.keys, p.machine.Authority
	p.cluster.gate = p.gate
	if p.keys == nil {
		return nil
	}
	if err := p.keys.adopt(p.machine.Authority()); err != nil {
		return err
	}
	return p.renewExpired(p.lifetime)
}

// consensusConfig says where a node's log is, and who the node is for the others.
func consensusConfig(folder *dataFolder, address string, fatal func(error)) consensus.Config {
	cfg := consensus.DefaultConfig()
	cfg.NodeID, cfg.Address = folder.identity.ID, address
	cfg.Dir, cfg.Fatal = filepath.Join(folder.path, raftDir), fatal
	return cfg
}

// clusterID is the id of the cluster that this node belongs to, empty for none. A node
// that rejoins has it from its data folder until its state is there: nodes of the
// cluster as it was must not take this one for theirs.
func (p *parts) clusterID() string {
	return cmp.Or(p.machine.ClusterID(), p.knownID)
}

// lineage is where this node's cluster comes from.
func (p *parts) lineage() lineage { return lineage{p.clusterID(), p.machine.Recoveries()} }

// raftNetwork is what consensus needs of the cluster port.
type raftNetwork struct {
	*protocolListener
	*connPool
}

// openServices opens the blob store and the servers on top of everything.
func (p *parts) openServices(n *Node) (err error) {
	p.ready = &readiness{readIndex: p.replica.ReadIndex}
	p.peers = newPeers(p.self.Id, p.pool, p.members, p.component("peers"))
	p.peers.stats, p.peers.lineage = p.heartbeat, p.lineage

	cfg := blobstore.DefaultConfig()
	cfg.Dir, cfg.Logger = filepath.Join(p.folder.path, shardsDir), p.component("blobstore")
	for _, dir := range p.cfg.Data[1:] {
		cfg.MoreDirs = append(cfg.MoreDirs, filepath.Join(dir, shardsDir))
	}
	cfg.Parity, cfg.CapacityBytes, cfg.ReserveBytes, cfg.BufferBytes = p.cfg.Parity, p.cfg.Capacity, p.cfg.ReserveBytes, p.cfg.Limits.BufferBytes
	cfg.ScrubPeriod, cfg.ScrubBytesPerSecond = p.cfg.Scrub.Period, p.cfg.Scrub.BytesPerSecond
	cfg.CacheDir, cfg.CacheBytes = filepath.Join(p.folder.path, cacheDir), p.cfg.CacheBytes
	if n.tune != nil {
		n.tune(&cfg)
	}
	p.eraLength = max(cfg.SweepGrace/2, minEraLength) // two eras are as long as the grace
	if p.blobs, err = blobstore.Open(cfg, p.peers, through[blobstore.Catalog](n.seams.Catalog, p.store)); err != nil {
		return err
	}
	p.closers = append(p.closers, p.blobs.Close)
	known := &admin{self: p.self, store: p.store, replica: p.replica, blobs: p.blobs, peers: p.peers}
	p.metrics.MustRegister(newClusterMetrics(p), newRepairMetrics(known.repair, p.blobs.ScrubStatus, p.component("metrics")), newCacheMetrics(p.blobs.Cache))

	p.rpc = newGRPCServer(p.clusterID, p.gate.mayCall)
	p.replica.Register(p.rpc)
	p.blobs.Register(p.rpc)
	p.links = p.blobs.LinkServer(p.admitLink)
	atoll.RegisterMembershipServer(p.rpc, &membership{
		self: p.self, store: p.store, replica: p.replica, peers: p.peers, pool: p.pool, log: p.component("membership"), clusterID: p.clusterID,
		gate: p.gate, lifetime: p.lifetime,
	})
	if p.keys != nil {
		enroller := &enroller{store: p.store, clusterID: p.clusterID, lifetime: p.lifetime, log: p.component("enrolment"), wrong: make(map[netip.Addr]*rate.Limiter)}
		p.cluster.enroll = enroller.serve
	}
	return p.openGateway(n.seams.Handler)
}

// openGateway opens what speaks to clients.
func (p *parts) openGateway(seam func(http.Handler) http.Handler) (err error) {
	logger := p.component("gateway")
	proxies, err := p.cfg.Registry.trustedProxies()
	if err != nil {
		return err
	}
	auth, err := p.openAuth()
	if err != nil {
		return err
	}
	if p.audit, err = p.openAudit(); err != nil {
		return err
	}
	p.handler = through(seam, gateway.New(gateway.Config{
		Logger: logger, Metrics: p.metrics,
		MaxConcurrentUploads: p.cfg.Limits.Uploads, MaxConcurrentPulls: p.cfg.Limits.Pulls,
		Homes: homes{p.peers, p.members, p.peers.servesClients, p.blobs.AtHand, p.blobs.Keeps}, Redirect: gateway.RedirectMode(p.cfg.Registry.Redirect),
		RedirectMinBytes: p.cfg.Registry.RedirectMinBytes, RedirectTTL: p.cfg.Registry.RedirectTTL, TrustedProxies: proxies,
		RequestsPerSecond: p.cfg.Limits.RequestsPerSecond, RequestBurst: p.cfg.Limits.RequestBurst, RequestsPerClient: p.cfg.Limits.RequestsPerClient,
		RequireIndexChildren: p.cfg.Registry.RequireIndexChildren,
		Audit:                p.audit, AuditPulls: p.cfg.Audit.Pulls,
		Auth: auth, UploadsPerAccount: p.cfg.Limits.UploadsPerAccount,
	}, p.store, p.blobs))
	config, err := p.clientTLS(logger)
	if err != nil {
		return fmt.Errorf("registry.tls: %w", err)
	}
	p.registry = gateway.NewServer(p.handler, config, logger)
	return nil
}

// members are the nodes that are not removed.
func (p *parts) members() []*atoll.Node {
	return slices.DeleteFunc(slices.Clone(p.store.LocalNodes()), func(node *atoll.Node) bool {
		return node.State == atoll.NodeState_NODE_STATE_REMOVED
	})
}

// heartbeat describes this node to the others.
func (p *parts) heartbeat() *atoll.HeartbeatResponse {
	free, capacity := p.blobs.Space()
	applied, _ := p.machine.Applied()
	checkpoint, hash := p.machine.Checkpoint()
	stats := &atoll.HeartbeatResponse{
		NodeId: p.self.Id, FreeBytes: free, CapacityBytes: capacity, AppliedIndex: applied,
		CheckpointIndex: checkpoint, CheckpointHash: hash,
		Closing: p.ready.closing.Load(), Ready: p.ready.forWrites() == nil,
		Repair: repairProgress(p.blobs), Disks: diskReports(p.blobs),
	}
	if p.keys != nil {
		p.keys.describe(stats)
	}
	return stats
}

func diskReports(blobs *blobstore.Store) (reports []*atoll.DiskReport) {
	for _, disk := range blobs.Disks() {
		reports = append(reports, &atoll.DiskReport{Folder: filepath.Dir(disk.Dir), FreeBytes: disk.FreeBytes, CapacityBytes: disk.CapacityBytes, Fault: disk.Fault})
	}
	return reports
}

// close undoes open, last things first, and reports every error.
func (p *parts) close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
