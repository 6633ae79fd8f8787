package cluster

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecordsSurviveTheJourney(t *testing.T) {
	records := []Record{
		active("01M81JT8PV1CCY5TH4D5CTA3ZH", "eu-west-1a", 12),
		{ID: "x", State: Left, Epoch: 1<<64 - 1, Incarnation: 1<<64 - 1, Rank: 1<<16 - 1},
	}
	got, err := Decode(Encode(nil, records...))
	require.NoError(t, err)
	require.Equal(t, records, got)
	empty, err := Decode(Encode(nil))
	require.NoError(t, err)
	require.Empty(t, empty)
}

func TestAMemberCostsLittleGossip(t *testing.T) {
	rec := active("01M81JT8PV1CCY5TH4D5CTA3ZH", "europe-west1-b", 100)
	rec.Address = "ingester-europe-west1-b-100.hundredfold:9095"
	rec.Incarnation = 1 << 63
	require.Less(t, len(Encode(nil, rec)), 200)
}

// The bytes are fixed: nodes of different releases read each other.
func TestGoldenEncoding(t *testing.T) {
	rec := Record{ID: "id", Zone: "z", Rank: 300, Address: "h:1", State: Draining, Epoch: 5, Incarnation: 0x0102030405060708, Generation: 0x1112131415161718}
	require.Equal(t, "01"+"1d"+"026964"+"017a"+"03683a31"+"ac02"+"04"+"05"+"0102030405060708"+"1112131415161718", hex.EncodeToString(Encode(nil, rec)))
}

func TestFieldsOfLaterReleasesAreSkipped(t *testing.T) {
	rec := active("a", "z", 1)
	encoded := Encode(nil, rec)
	body := append(encoded[2:len(encoded):len(encoded)], "more"...)
	later := append([]byte{codecVersion}, binary.AppendUvarint(nil, uint64(len(body)))...)
	later = append(later, body...)
	got, err := Decode(later)
	require.NoError(t, err)
	require.Equal(t, []Record{rec}, got)
}

func TestMalformedMessagesAreErrors(t *testing.T) {
	whole := Encode(nil, active("a", "z", 1))
	for cut := range len(whole) {
		if cut == 1 {
			continue // a message without records
		}
		_, err := Decode(whole[:cut])
		require.ErrorIs(t, err, errCodec, "cut after %d", cut)
	}
	for name, data := range map[string][]byte{
		"another version": {9},
		"a long record":   Encode(nil, active(strings.Repeat("x", maxEncodedRecord), "", 0)),
	} {
		_, err := Decode(data)
		require.ErrorIs(t, err, errCodec, name)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(nil, active("a", "z", 1), active("b", "", 0)))
	f.Add([]byte{codecVersion, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		records, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Decode(Encode(nil, records...))
		require.NoError(t, err)
		require.Equal(t, records, again)
		_, _, _ = Registry{}.Merge(records...)
	})
}
