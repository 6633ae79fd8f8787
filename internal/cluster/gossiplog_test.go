package cluster

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGossipIsLoggedAtTheLevelItDeserves(t *testing.T) {
	for line, level := range map[string]string{
		"2026/11/22 14:00:00 [ERR] memberlist: Failed to decode ping request: x from=10.0.0.1:7946\n":                              "INFO",
		"2026/11/22 14:00:00 [WARN] memberlist: Got ping for unexpected node 'a/1' from=10.0.0.1:7946\n":                           "DEBUG",
		"2026/11/22 14:00:00 [INFO] memberlist: Suspect a/1 has failed, no acks received\n":                                        "DEBUG",
		"2026/11/22 14:00:00 [ERR] memberlist: Push/Pull with a/1 failed: dial tcp 10.0.0.1:7946: connect: connection refused\n":   "DEBUG",
		"2026/11/22 14:00:00 [ERR] memberlist: discarding packet with unacceptable label \"other\": from=10.0.0.1:7946\n":          "WARN",
		"2026/11/22 14:00:00 [ERR] memberlist: Decrypt packet failed: No installed keys could decrypt the message from=10.0.0.1:1": "WARN",
		"2026/11/22 14:00:00 [ERR] memberlist: msg type (10) not supported from=10.0.0.1:7946":                                     "WARN",
		"something of another form": "DEBUG",
	} {
		var out logBuffer
		log := newGossipLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), func() {})
		n, err := log.Write([]byte(line))
		require.NoError(t, err)
		require.Equal(t, len(line), n)
		require.Contains(t, out.String(), "level="+level, line)
		require.NotContains(t, out.String(), "14:00:00 [")
	}
}

func TestEachForeignSourceIsReportedOnce(t *testing.T) {
	var (
		out     logBuffer
		foreign int
	)
	log := newGossipLog(slog.New(slog.NewTextHandler(&out, nil)), func() { foreign++ })
	for _, source := range []string{"10.0.0.1:7946", "10.0.0.1:51234", "10.0.0.2:7946", "10.0.0.1:7946"} {
		_, err := log.Write([]byte("2026/11/22 14:00:00 [ERR] memberlist: discarding stream with unacceptable label \"other\": from=" + source + "\n"))
		require.NoError(t, err)
	}
	require.Equal(t, 4, foreign)
	require.Equal(t, 2, strings.Count(out.String(), "level=WARN"))
	require.Contains(t, out.String(), "source=10.0.0.2")
}
