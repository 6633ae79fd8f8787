package querier

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// threeHours is a rig with three blocks of an hour each.
func threeHours(t *testing.T, opt rigOption) (r *rig, blocks [3]ulid.ULID) {
	r = newRig(t, opt)
	for i := range blocks {
		blocks[i] = r.uploadHour(int64(i))
	}
	r.refresh()
	return r, blocks
}

func (r *rig) file(block ulid.ULID, name string) string {
	r.t.Helper()
	dir, ok := r.store.LocalDir(alice, block)
	require.True(r.t, ok)
	return filepath.Join(dir, name)
}

func damageChunks(r *rig, block ulid.ULID) {
	path := r.file(block, "chunks/000001")
	segment, err := os.ReadFile(path)
	require.NoError(r.t, err)
	for i := 8; i < len(segment); i++ {
		segment[i] ^= 0xff
	}
	require.NoError(r.t, os.Remove(path))
	require.NoError(r.t, os.WriteFile(path, segment, 0o644))
}

const allHours = "&start=0&end=10740&step=60"

// points counts the points of a range query over the three hours.
func points(got response) int {
	return strings.Count(string(got.Data), `","`) + strings.Count(string(got.Data), `,"`)
}

func TestAnAnswerIsPartialOnlyIfItMayBe(t *testing.T) {
	for what, harm := range map[string]func(r *rig, block ulid.ULID){
		"index": func(r *rig, block ulid.ULID) {
			require.NoError(r.t, os.Remove(r.file(block, "index")))
			require.NoError(r.t, os.WriteFile(r.file(block, "index"), []byte("damaged"), 0o644))
		},
		"chunks": damageChunks,
		"it is gone": func(r *rig, block ulid.ULID) {
			require.NoError(r.t, r.store.Delete(r.t.Context(), alice, block))
		},
	} {
		t.Run(what, func(t *testing.T) {
			r, _ := threeHours(t, rigOption{inPlace: true})
			whole := r.get(alice, "/api/v1/query_range?query=x"+allHours)
			require.Equal(t, 200, whole.Code, whole.Body)
			r2, blocks := threeHours(t, rigOption{inPlace: true})
			harm(r2, blocks[1])
			for _, parameter := range []string{"", "&partial_response=false", "&partial_response=0"} {
				got := r2.get(alice, "/api/v1/query_range?query=x"+allHours+parameter)
				require.NotEqual(t, 200, got.Code, parameter)
			}
			got := r2.get(alice, "/api/v1/query_range?query=x"+allHours+"&partial_response=true")
			require.Equal(t, 200, got.Code, got.Body)
			require.NotEmpty(t, got.Warnings)
			require.Contains(t, got.Warnings[0], "samples from 1970-01-01T01:00:00Z to 1970-01-01T02:00:00Z are missing, since block "+blocks[1].String()+" cannot be read")
			require.Less(t, points(got), points(whole))
			require.Greater(t, points(got), points(whole)/2)

			// What needs nothing of that block is whole.
			got = r2.get(alice, "/api/v1/query?query=x&time=60&partial_response=true")
			require.Equal(t, 200, got.Code)
			require.Empty(t, got.Warnings)
			require.Equal(t, 1, strings.Count(string(got.Data), `"metric"`))
		})
	}
}

func TestARunThatCameToNothingHoldsNothing(t *testing.T) {
	harmed := func(harm bool) *rig {
		r := newRig(t, rigOption{inPlace: true})
		for i := range int64(6) {
			block := r.uploadHour(i)
			if harm && i > 0 {
				damageChunks(r, block)
			}
		}
		r.refresh()
		return r
	}
	// One after the other, so that each run finds one damaged block more.
	const path = "/api/v1/query?query=count_over_time(x[6h])&time=21600&partial_response=true&stats=all"
	whole := harmed(false).get(alice, path)
	require.Equal(t, 200, whole.Code, whole.Body)
	var data struct {
		Stats struct {
			Account accountStats `json:"account"`
		} `json:"stats"`
	}
	require.NoError(t, json.Unmarshal(whole.Data, &data))
	r := harmed(true)
	r.limits.MaxQueryBytes = data.Stats.Account.PeakBytes * 3 / 2
	got := r.get(alice, path)
	require.Equal(t, 200, got.Code, got.Body)
	require.Len(t, got.Warnings, 5)
}

func TestLabelsAndSeriesMayBePartial(t *testing.T) {
	r := newRig(t, rigOption{inPlace: true})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	lost := r.upload(alice, hour, 2*hour, blocktest.Floats("y", hour, 2*hour, minute))
	r.refresh()
	require.NoError(t, os.Remove(r.file(lost, "index")))
	require.NoError(t, os.WriteFile(r.file(lost, "index"), []byte("damaged"), 0o644))
	for _, path := range []string{
		"/api/v1/labels?start=0&end=7200",
		"/api/v1/label/__name__/values?start=0&end=7200",
		"/api/v1/series?match[]={__name__=~\".%2B\"}&start=0&end=7200",
		"/api/v1/query?query=count({__name__=~\".%2B\"}[2h])&time=7200",
	} {
		path = strings.Replace(path, "count({__name__=~\".%2B\"}[2h])", url.QueryEscape(`count(last_over_time({__name__=~".+"}[2h]))`), 1)
		require.NotEqual(t, 200, r.get(alice, path).Code, path)
		got := r.get(alice, path+"&partial_response=true")
		require.Equal(t, 200, got.Code, got.Body)
		require.NotEmpty(t, got.Warnings, path)
		require.Contains(t, got.Warnings[0], lost.String(), path)
		require.NotContains(t, string(got.Data), `"y"`, path)
	}
	require.Equal(t, 400, r.get(alice, "/api/v1/query?query=1&partial_response=maybe").Code)
}

func TestAnAnswerWithoutTheBucketSaysSo(t *testing.T) {
	r, _ := threeHours(t, rigOption{})
	r.bucket.FailFrom(1)
	got := r.get(alice, "/api/v1/query_range?query=x"+allHours+"&partial_response=true")
	require.Equal(t, 200, got.Code, got.Body)
	require.Len(t, got.Warnings, 3)
	r.bucket.Heal()
	got = r.get(alice, "/api/v1/query_range?query=x"+allHours+"&partial_response=true")
	require.Equal(t, 200, got.Code)
	require.Empty(t, got.Warnings)
}

func TestWhatMustNotBeSeenIsNotPassedOver(t *testing.T) {
	r := newRig(t, rigOption{})
	got := r.get(alice, "/api/v1/query?query=x&partial_response=true")
	require.Equal(t, 503, got.Code, "not even the deletions are known: %s", got.Body)
}

func TestIngestersThatAreMissingMakeAnAnswerPartial(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	c.refresh()
	c.write(t, alice, "x", 5, 0, hour)
	c.upload(alice, 10*hour, 11*hour, blocktest.Floats("x", 10*hour, 11*hour, minute))
	c.refresh()
	for _, r := range c.replicas[:2] {
		r.server.Stop()
	}
	query := "/api/v1/query?query=" + url.QueryEscape("last_over_time(x[12h])") + "&time=39600"
	require.Equal(t, 503, c.get(alice, query).Code)
	got := c.get(alice, query+"&partial_response=true")
	require.Equal(t, 200, got.Code, got.Body)
	require.NotEmpty(t, got.Warnings)
	require.Contains(t, got.Warnings[0], "recent samples would be incomplete")
	require.Equal(t, 1, strings.Count(string(got.Data), `"metric"`), "of the bucket's block")
}

func TestAnIndexWithAllThatWasDroppedIsEnoughAfterAStart(t *testing.T) {
	view := &tenantView{}
	view.index.Generation = 7
	require.NoError(t, viewCheck(0, 10, 7)(view))
	require.ErrorIs(t, viewCheck(0, 10, 8)(view), errNotListed, "an ingester has deleted a block that it may lack")
	require.ErrorIs(t, viewCheck(0, 10, 0)(view), errNotListed, "nobody knows what was deleted")
	require.Nil(t, viewCheck(10, 10, 8), "ingesters hold all of it")
}
