package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/atollregistry/atoll/cmd/bench"
)

// dockerRegistryForm is the configuration that Debian's package comes with, without a login,
// and without a log of each request, for which atoll pays. The values are the data folder and
// the address.
const dockerRegistryForm = `version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: %q
  delete:
    enabled: true
http:
  addr: %q
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
`

// dockerRegistryServer is Debian's docker-registry with its data in a folder.
type dockerRegistryServer struct {
	at      place
	url     string
	argv    []string
	process *process
}

// newDockerRegistry writes a configuration into a folder, which must be there.
func newDockerRegistry(program, folder, address string) (*dockerRegistryServer, error) {
	data, config := filepath.Join(folder, "data"), filepath.Join(folder, "config.yml")
	s := &dockerRegistryServer{
		at:   place{folder: folder, data: []string{data}, pids: filepath.Join(folder, "pids")},
		url:  "http://" + address,
		argv: []string{program, "serve", config},
	}
	return s, os.WriteFile(config, fmt.Appendf(nil, dockerRegistryForm, data, address), 0o600)
}

func (s *dockerRegistryServer) place() *place { return &s.at }

func (s *dockerRegistryServer) start(ctx context.Context) (err error) {
	if s.process, err = startProcess(filepath.Join(s.at.folder, "log"), s.argv...); err != nil {
		return err
	}
	if err := await(ctx, s.process, s.url+"/v2/"); err != nil {
		return err
	}
	return s.at.writePIDs([]int{s.process.pid()})
}

func (s *dockerRegistryServer) stop() error {
	if s.process == nil {
		return nil
	}
	return s.process.stop()
}

func (s *dockerRegistryServer) registry() bench.Registry {
	return bench.Registry{Name: string(dockerRegistry), URLs: []string{s.url}, Processes: []string{s.at.pids}}
}
