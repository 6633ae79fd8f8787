// Package tenant says who a request belongs to: the type of tenant names, how
// a name reaches the code that needs it (the request's context), and what each
// tenant may use (Limits). It knows nothing of storage or of the roles.
package tenant

import (
	"context"
	"errors"
	"fmt"
)

// ID names a tenant. A valid ID is safe as a path element, as a part of an
// object key and as a label value; get one with Parse.
type ID string

const (
	// Default is the only tenant of a process without multi-tenancy.
	Default ID = "default"
	// Self receives the metrics of Hundredfold itself when multi-tenancy is on.
	Self ID = "hundredfold"

	maxIDLength = 150
)

var (
	// ErrInvalidID says that a name cannot be a tenant's.
	ErrInvalidID = errors.New("invalid tenant name")
	// ErrNoTenant says that a context carries no tenant. Whoever reads or
	// writes data must treat it as a refusal, never as "the default tenant".
	ErrNoTenant = errors.New("no tenant in the request")
)

// Parse checks s and returns it as an ID. Allowed are letters, digits and
// !-_.*'() (what Cortex and Mimir allow, so that their buckets can be adopted),
// at most 150 bytes, and neither "." nor "..".
func Parse(s string) (ID, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("%w: it is empty", ErrInvalidID)
	case len(s) > maxIDLength:
		return "", fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrInvalidID, len(s), maxIDLength)
	case s == "." || s == "..":
		return "", fmt.Errorf("%w: %q is a path", ErrInvalidID, s)
	}
	for i := range len(s) {
		if !allowed(s[i]) {
			return "", fmt.Errorf("%w: character %q at position %d; allowed are letters, digits and !-_.*'()", ErrInvalidID, s[i], i)
		}
	}
	return ID(s), nil
}

func allowed(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '!', '-', '_', '.', '*', '\'', '(', ')':
		return true
	}
	return false
}

type contextKey struct{}

// NewContext returns a context that carries id.
func NewContext(ctx context.Context, id ID) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// FromContext returns the tenant that ctx carries, or ErrNoTenant.
func FromContext(ctx context.Context) (ID, error) {
	id, ok := ctx.Value(contextKey{}).(ID)
	if !ok || id == "" {
		return "", ErrNoTenant
	}
	return id, nil
}
