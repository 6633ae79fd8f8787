package remoteblock

import (
	"errors"
	"fmt"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

var (
	// ErrDamaged says that what a block holds is not what was once written: reading it
	// again will not help, and another copy of the block or its quarantine will.
	ErrDamaged = errors.New("the block is damaged")

	// errVersion says that a file is of a version that this build does not know.
	errVersion = errors.New("it was written in a format that this build does not read")
	// errClosed is the sticky error of a Reader after Close.
	errClosed = errors.New("BUG: a block is read after its reader was closed")
)

// FileError says where in a block reading failed. It is an ErrDamaged if the bytes were
// read and are wrong, and not if they could not be read.
type FileError struct {
	Tenant tenant.ID
	Block  ulid.ULID
	File   string // relative to the block
	Offset int64  // bytes from the start of File; -1: the file as a whole
	Err    error
}

func (e *FileError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s of block %s of tenant %q: %s", e.File, e.Block, e.Tenant, e.Err)
	}
	return fmt.Sprintf("%s of block %s of tenant %q at byte %d: %s", e.File, e.Block, e.Tenant, e.Offset, e.Err)
}

func (e *FileError) Unwrap() error { return e.Err }

// damagef returns an ErrDamaged that says what is wrong.
func damagef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// offsetError is an error that knows its place in a file, until somebody who knows the
// file makes a FileError of it.
type offsetError struct {
	offset int64
	err    error
}

func (e *offsetError) Error() string { return fmt.Sprintf("at byte %d: %s", e.offset, e.err) }

func (e *offsetError) Unwrap() error { return e.err }

func at(offset int64, err error) error { return &offsetError{offset, err} }
