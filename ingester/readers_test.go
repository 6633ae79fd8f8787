package ingester

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestShutWaitsForAMomentWithoutReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r readers
		r.enter()
		r.enter()
		done := make(chan bool)
		go func() { done <- r.shut(context.Background(), time.Minute, time.Second) }()
		time.Sleep(30 * time.Second) //nolint:forbidigo // in the bubble's time
		r.leave()
		r.enter() // New ones come in while it waits.
		r.leave()
		synctest.Wait()
		require.Empty(t, done)
		r.leave()
		require.True(t, <-done)

		entered := make(chan struct{})
		go func() { r.enter(); close(entered) }()
		synctest.Wait()
		select {
		case <-entered:
			t.Fatal("a reader came in")
		default:
		}
		r.open()
		<-entered
	})
}

func TestShutLetsNoMoreReadersInWhenItsPatienceIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r readers
		r.enter()
		done := make(chan bool)
		go func() { done <- r.shut(context.Background(), time.Minute, time.Second) }()
		time.Sleep(time.Minute + time.Millisecond) //nolint:forbidigo // in the bubble's time
		entered := make(chan struct{})
		go func() { r.enter(); close(entered) }()
		synctest.Wait()
		r.leave()
		require.True(t, <-done)
		r.open()
		<-entered
	})
}

func TestShutGivesUpAndLetsReadersIn(t *testing.T) {
	for name, stop := range map[string]time.Duration{"in the end": time.Hour, "when it is told to": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), stop)
				defer cancel()
				var r readers
				r.enter()
				require.False(t, r.shut(ctx, time.Minute, time.Second))
				r.enter()
				r.leave()
				r.leave()
				require.True(t, r.shut(context.Background(), 0, 0))
			})
		})
	}
}
