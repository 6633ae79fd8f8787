package wire

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

func rejected(reasons ...write.Reason) error {
	var result write.Result
	for _, r := range reasons {
		result.Reject(&write.SeriesError{Reason: r}, 1)
	}
	return result.Err()
}

func TestEveryErrorHasOneStatus(t *testing.T) {
	cause := errors.New("cause")
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 200},
		{Unavailable(cause, 0), 503},
		{Invalid(cause), 400},
		{tenant.ErrNoTenant, 401},
		{tenant.ErrInvalidID, 400},
		{context.Canceled, 503},
		{context.DeadlineExceeded, 503},
		{cause, 500},
		{rejected(write.ReasonTooOld), 400},
		{rejected(write.ReasonTooOld, write.ReasonTenantSeriesLimit), 429},
		{rejected(write.ReasonTenantGrowthLimit), 429},
		{rejected(write.ReasonTenantSeriesLimit, write.ReasonInstanceSeriesLimit, write.ReasonTooOld), 503},
		{rejected(write.ReasonInstanceHeapLimit), 503},
	} {
		require.Equal(t, c.want, HTTPStatus(c.err), "%v", c.err)
		if c.err != nil {
			require.Equal(t, c.want, HTTPStatus(fmt.Errorf("while doing something: %w", c.err)), "wrapped: %v", c.err)
		}
	}
}

func TestRetryAfterIsWhatTheErrorSays(t *testing.T) {
	delay, ok := RetryAfter(fmt.Errorf("wrapped: %w", Unavailable(errors.New("busy"), 3*time.Second)))
	require.True(t, ok)
	require.Equal(t, 3*time.Second, delay)
	_, ok = RetryAfter(Unavailable(errors.New("busy"), 0))
	require.False(t, ok)
	_, ok = RetryAfter(errors.New("other"))
	require.False(t, ok)
}
