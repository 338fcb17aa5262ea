package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/atollregistry/atoll/cmd/bench"
)

const (
	// nginxWorkers is one for each core of the machine that the targets are for.
	nginxWorkers = 2
	// nginxConnections is more than any row has clients.
	nginxConnections = 4096
)

// nginxForm sends files in the way that costs least. The values are the user that has the
// files, workers, connections, the folder (six times), the address, and the folder of the files.
const nginxForm = `user %[1]s;
daemon off;
worker_processes %[2]d;
pid %[4]s/nginx.pid;
error_log stderr error;
events {
	worker_connections %[3]d;
}
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000;
	default_type application/octet-stream;
	client_body_temp_path %[4]s/body;
	proxy_temp_path %[4]s/proxy;
	fastcgi_temp_path %[4]s/fastcgi;
	uwsgi_temp_path %[4]s/uwsgi;
	scgi_temp_path %[4]s/scgi;
	server {
		listen %[5]s;
		root %[6]s;
		location = /ready {
			return 200;
		}
	}
}
`

// nginxConfig is the whole configuration. Paths must be of letters, digits and what nginx
// takes for neither its end nor a variable.
func nginxConfig(owner, folder, address, files string) (string, error) {
	if strings.ContainsAny(folder+files, " \t\n;{}\"'\\$#") {
		return "", fmt.Errorf("nginx can't be given the path %s: name another folder with --folder", folder)
	}
	return fmt.Sprintf(nginxForm, owner, nginxWorkers, nginxConnections, folder, address, files), nil
}

// nginxServer is nginx with some files of the size of a blob.
type nginxServer struct {
	at      place
	url     string
	files   int
	argv    []string
	process *process
}

// newNginx writes a configuration into a folder, which must be there, and as many files as the
// load has blobs.
func newNginx(program, folder, address string, load bench.Config) (*nginxServer, error) {
	me, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("find out whose files nginx is to send: %w", err)
	}
	data, path := filepath.Join(folder, "files"), filepath.Join(folder, "nginx.conf")
	config, err := nginxConfig(me.Username, folder, address, data)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(path, []byte(config), 0o600), os.Mkdir(data, 0o700)); err != nil {
		return nil, err
	}
	for i := range load.Blobs {
		if err := writeRandom(filepath.Join(data, strconv.Itoa(i)), load.Size); err != nil {
			return nil, err
		}
	}
	return &nginxServer{
		at:    place{folder: folder, data: []string{data}, pids: filepath.Join(folder, "pids")},
		url:   "http://" + address,
		files: load.Blobs,
		argv:  []string{program, "-c", path, "-p", folder, "-e", "stderr"},
	}, nil
}

// writeRandom makes a file that does not compress, as blobs don't.
func writeRandom(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(file, mathrand.NewChaCha8([32]byte{}), size)
	return errors.Join(err, file.Close())
}

func (s *nginxServer) place() *place { return &s.at }

func (s *nginxServer) start(ctx context.Context) (err error) {
	if s.process, err = startProcess(filepath.Join(s.at.folder, "log"), s.argv...); err != nil {
		return err
	}
	if err := await(ctx, s.process, s.url+"/ready"); err != nil {
		return err
	}
	workers, err := s.process.children()
	if err != nil {
		return err
	}
	return s.at.writePIDs(append(workers, s.process.pid()))
}

func (s *nginxServer) stop() error {
	if s.process == nil {
		return nil
	}
	return s.process.stop()
}

func (s *nginxServer) registry() bench.Registry {
	r := bench.Registry{Name: string(nginx), Processes: []string{s.at.pids}}
	for i := range s.files {
		r.Static = append(r.Static, s.url+"/"+strconv.Itoa(i))
	}
	return r
}
