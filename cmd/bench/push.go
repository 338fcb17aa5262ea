package bench

import "context"

// pushStream is docker's way: a body of no stated length, and the digest at the end.
func pushStream(t *target) work {
	return t.pushing(func(ctx context.Context, u *upload, b *blob) error {
		if err := u.stream(ctx, b); err != nil {
			return err
		}
		return u.finish(ctx, b.digest, nil)
	})
}

// pushPut is the way of containerd and podman: the body comes with the digest.
func pushPut(t *target) work {
	return t.pushing(putWhole)
}

func putWhole(ctx context.Context, u *upload, b *blob) error { return u.finish(ctx, b.digest, b) }

// pushChunked is the way of clients that can go on after an interruption.
func pushChunked(t *target) work {
	return t.pushing(func(ctx context.Context, u *upload, b *blob) error {
		for offset := int64(0); offset < b.bytes; offset += t.config.Chunk {
			if err := u.chunk(ctx, b, offset, min(offset+t.config.Chunk, b.bytes)); err != nil {
				return err
			}
		}
		return u.finish(ctx, b.digest, nil)
	})
}

// pushing pushes a new blob in each operation. All its requests go to one node, unless
// that says otherwise.
func (t *target) pushing(send func(context.Context, *upload, *blob) error) work {
	return work{operation: func(ctx context.Context, n uint64) (int64, error) {
		b, err := t.newBlob(t.blobs)
		if err != nil {
			return 0, err
		}
		if err := t.push(ctx, t.base(n), &b, send); err != nil {
			return 0, err
		}
		return b.bytes, nil
	}}
}

// push begins an upload and leaves the rest to send.
func (t *target) push(ctx context.Context, base string, b *blob, send func(context.Context, *upload, *blob) error) error {
	u, err := t.client.startUpload(ctx, base)
	if err != nil {
		return err
	}
	return send(ctx, u, b)
}
