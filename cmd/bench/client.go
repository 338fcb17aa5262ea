package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	// socketBufferBytes is what net/http reads and writes at once, where it has a choice.
	socketBufferBytes = 64 << 10
	// readBytes is how much of a blob is read at once, into a buffer that is used again.
	readBytes = 256 << 10
	// maxAnswerBytes bounds what is read of an answer that is no blob.
	maxAnswerBytes = 16 << 20
	// maxFaultBytes is how much of an error's body is told.
	maxFaultBytes = 300
)

// client sends requests to the URLs of one registry. It speaks HTTP/1.1, as most
// clients of registries do for blobs, keeps its connections, takes no proxy from the
// environment and repeats nothing.
type client struct {
	http    *http.Client
	login   *login
	buffers sync.Pool
}

// newClient keeps a connection for each of the clients that it speaks for.
func newClient(clients int, trust TLS, who *login) (*client, error) {
	config := &tls.Config{InsecureSkipVerify: trust.Insecure}
	if len(trust.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(trust.CA) {
			return nil, errors.New("the file with the authorities has no certificate")
		}
	}
	return &client{
		http: &http.Client{Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:     config, // net/http does not speak HTTP/2 where it is given its own
			TLSHandshakeTimeout: dialTimeout,
			MaxIdleConnsPerHost: clients,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
			WriteBufferSize:     socketBufferBytes,
			ReadBufferSize:      socketBufferBytes,
		}},
		login: who,
		buffers: sync.Pool{New: func() any {
			buffer := make([]byte, readBytes)
			return &buffer
		}},
	}, nil
}

// call is one request.
type call struct {
	method, url string
	// body may be nil. It has so many bytes, or -1 if the server is not to know before.
	body   io.Reader
	length int64
	// header are pairs of names and values.
	header []string
	// want are the statuses that mean success.
	want []int
}

// send does a call and returns an answer that has one of the statuses, whose body the caller must close.
func (c *client) send(ctx context.Context, one call) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, one.method, one.url, one.body)
	if err != nil {
		return nil, err
	}
	if one.body != nil {
		request.ContentLength = one.length
	}
	for pair := range slices.Chunk(one.header, 2) {
		request.Header.Set(pair[0], pair[1])
	}
	if err := c.login.authorize(ctx, c.http, request); err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if slices.Contains(one.want, response.StatusCode) {
		return response, nil
	}
	defer response.Body.Close()
	// Read to the end, so that the connection can be used again; the status is told whether or not that works.
	said, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	text := strings.Join(strings.Fields(string(said[:min(len(said), maxFaultBytes)])), " ")
	return nil, &statusError{method: one.method, url: response.Request.URL.Redacted(), status: response.StatusCode, body: text}
}

// exchange does a call and reads its answer, which is no blob.
func (c *client) exchange(ctx context.Context, one call) (*http.Response, []byte, error) {
	response, err := c.send(ctx, one)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: read answer: %w", one.method, one.url, err)
	}
	if len(body) > maxAnswerBytes {
		return nil, nil, fmt.Errorf("%s %s: %w: more than %d bytes", one.method, one.url, errLength, maxAnswerBytes)
	}
	return response, body, nil
}

// fetch is a GET of bytes from offset to end, which is the whole or a range.
type fetch struct {
	url         string
	offset, end int64
	ranged      bool
	// expect is what the bytes are compared with, unless it is nil.
	expect *blob
}

// get reads what a fetch asks for and throws it away. Redirects are followed.
func (c *client) get(ctx context.Context, f fetch) (read int64, err error) {
	one := call{method: http.MethodGet, url: f.url, want: []int{http.StatusOK}}
	if f.ranged {
		one.header = []string{"Range", fmt.Sprintf("bytes=%d-%d", f.offset, f.end-1)}
		one.want = []int{http.StatusPartialContent}
	}
	response, err := c.send(ctx, one)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if got := response.Header.Get("Content-Range"); f.ranged && !strings.HasPrefix(got, fmt.Sprintf("bytes %d-%d/", f.offset, f.end-1)) {
		return 0, fmt.Errorf("GET %s: %w: Content-Range is %q, %d to %d were asked for", f.url, errLength, got, f.offset, f.end-1)
	}
	pooled := c.buffers.Get().(*[]byte)
	defer c.buffers.Put(pooled)
	if read, err = drain(response.Body, *pooled, f); err != nil {
		return read, fmt.Errorf("GET %s: after %d bytes: %w", f.url, read, err)
	}
	return read, nil
}

// drain reads to the end and looks that it is where it must be.
func drain(body io.Reader, buffer []byte, f fetch) (read int64, err error) {
	want := f.end - f.offset
	for {
		n, err := body.Read(buffer)
		if f.expect != nil && !f.expect.equal(f.offset+read, buffer[:n]) {
			return read, errContent
		}
		read += int64(n)
		switch {
		case read > want || errors.Is(err, io.EOF) && read < want:
			return read, fmt.Errorf("%w: %d bytes", errLength, want)
		case errors.Is(err, io.EOF):
			return read, nil
		case err != nil:
			return read, err
		}
	}
}

// upload is a push that has begun.
type upload struct {
	client *client
	// location is where the next request goes.
	location *url.URL
}

// startUpload asks for one (POST).
func (c *client) startUpload(ctx context.Context, repository string) (*upload, error) {
	u := &upload{client: c}
	return u, u.step(ctx, call{method: http.MethodPost, url: repository + "/blobs/uploads/", want: []int{http.StatusAccepted}})
}

// step does a call and goes where its answer says.
func (u *upload) step(ctx context.Context, one call) error {
	response, _, err := u.client.exchange(ctx, one)
	if err != nil {
		return err
	}
	if u.location, err = response.Location(); err != nil {
		return fmt.Errorf("%s %s: %w", one.method, one.url, err)
	}
	return nil
}

// stream sends the whole blob as one body of no stated length, as docker does (PATCH).
func (u *upload) stream(ctx context.Context, b *blob) error {
	return u.step(ctx, call{
		method: http.MethodPatch, url: u.location.String(), body: &section{blob: b, end: b.bytes}, length: -1,
		header: []string{"Content-Type", "application/octet-stream"}, want: []int{http.StatusAccepted},
	})
}

// chunk sends the bytes from offset to end (PATCH).
func (u *upload) chunk(ctx context.Context, b *blob, offset, end int64) error {
	return u.step(ctx, call{
		method: http.MethodPatch, url: u.location.String(), body: &section{blob: b, offset: offset, end: end}, length: end - offset,
		header: []string{
			"Content-Type", "application/octet-stream",
			"Content-Range", strconv.FormatInt(offset, 10) + "-" + strconv.FormatInt(end-1, 10),
		},
		want: []int{http.StatusAccepted},
	})
}

// finish names the digest, and sends the blob if it was not sent yet (PUT).
func (u *upload) finish(ctx context.Context, digest string, b *blob) error {
	u.location.RawQuery = strings.TrimPrefix(u.location.RawQuery+"&digest="+url.QueryEscape(digest), "&")
	one := call{method: http.MethodPut, url: u.location.String(), want: []int{http.StatusCreated}}
	if b != nil {
		one.body, one.length = &section{blob: b, end: b.bytes}, b.bytes
		one.header = []string{"Content-Type", "application/octet-stream"}
	}
	_, _, err := u.client.exchange(ctx, one)
	return err
}
