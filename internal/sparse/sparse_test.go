package sparse

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLinesThatAreNotWrittenAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines Lines
		unsaid, ok := lines.Allow()
		require.True(t, ok)
		require.Zero(t, unsaid)
		for range 3 {
			_, ok = lines.Allow()
			require.False(t, ok)
		}
		<-time.After(Interval)
		unsaid, ok = lines.Allow()
		require.True(t, ok)
		require.Equal(t, 3, unsaid)
	})
}
