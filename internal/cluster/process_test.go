package cluster

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestProcessesSurviveTheJourney(t *testing.T) {
	p := process{Peer: Peer{
		ID: "01M81JT8PV1CCY5TH4D5CTA3ZH", Roles: []Role{RoleDistributor, RoleCompactor}, Zone: "z", GRPC: "h:9095", HTTP: "h:9009",
		Incarnation: 1<<64 - 1, RF: 3, View: 1 << 63,
	}, running: true}
	got, err := decodeProcess(p.encode(nil))
	require.NoError(t, err)
	require.Equal(t, p, got)
	got, err = decodeProcess(append(p.encode(nil), "more, of a later release"...))
	require.NoError(t, err)
	require.Equal(t, p, got)
	encoded := p.encode(nil)
	for cut := range len(encoded) {
		_, err := decodeProcess(encoded[:cut])
		require.ErrorIs(t, err, errProcess, "cut after %d", cut)
	}
	_, err = decodeProcess(append([]byte{9}, encoded[1:]...))
	require.ErrorIs(t, err, errProcess)
	_, err = decodeProcess(process{}.encode(nil))
	require.ErrorIs(t, err, errProcess)
}

// The bytes are fixed: nodes of different releases read each other.
func TestGoldenProcess(t *testing.T) {
	p := process{Peer: Peer{ID: "id", Roles: []Role{RoleIngester}, Zone: "z", GRPC: "h:1", HTTP: "h:2", Incarnation: 0x0102030405060708, RF: 3, View: 0x1112131415161718}, running: true}
	require.Equal(t, "01"+"026964"+"017a"+"03683a31"+"03683a32"+"02"+"0102030405060708"+"03"+"1112131415161718"+"01", hex.EncodeToString(p.encode(nil)))
}

func TestTheLongestProcessFitsIntoMetadata(t *testing.T) {
	long := strings.Repeat("x", maxString)
	p := process{Peer: Peer{ID: long, Roles: roleBits, Zone: long, GRPC: long, HTTP: long, RF: 3}}
	require.LessOrEqual(t, len(p.encode(nil)), maxProcess)
}

func FuzzDecodeProcess(f *testing.F) {
	f.Add(process{Peer: Peer{ID: "id", Roles: roleBits, Zone: "z", GRPC: "h:1", HTTP: "h:2", RF: 3}}.encode(nil))
	f.Add([]byte{processVersion, 1, 'a'})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodeProcess(data)
		if err != nil {
			return
		}
		again, err := decodeProcess(p.encode(nil))
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}
