package node

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/atollregistry/atoll/metadata"
)

// serveBlob sends the bytes of a blob that the cluster stores, whatever repository
// has it, if any does. It answers 404 only if the cluster has it no more.
func (a *admin) serveBlob(w http.ResponseWriter, r *http.Request) {
	blob, err := a.store.StoredBlob(r.Context(), r.PathValue("digest"))
	switch {
	case errors.Is(err, metadata.ErrBlobUnknown):
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reader, err := a.blobs.Read(r.Context(), blob.GetExtents(), 0, blob.GetSize())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer reader.Close()
	content := bufio.NewReader(reader)
	if _, err := content.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatUint(blob.GetSize(), 10))
	_, _ = io.Copy(w, content) // A receiver that gets less than that knows.
}
