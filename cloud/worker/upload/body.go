package upload

import (
	"fmt"
	"io"
)

// body reads head, then the file, and can be rewound for a retry.
type body struct {
	head []byte
	file io.ReaderAt
	size int64
	pos  int64
}

func newBody(head []byte, f io.ReaderAt, size int64) *body {
	return &body{head: head, file: f, size: size}
}

func (b *body) Read(p []byte) (int, error) {
	if b.pos >= b.size {
		return 0, io.EOF
	}
	if b.pos < int64(len(b.head)) {
		n := copy(p, b.head[b.pos:])
		b.pos += int64(n)
		return n, nil
	}
	p = p[:min(int64(len(p)), b.size-b.pos)]
	n, err := b.file.ReadAt(p, b.pos-int64(len(b.head)))
	b.pos += int64(n)
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

func (b *body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.pos
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	b.pos = offset
	return offset, nil
}
