package retention

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const day = 24 * time.Hour

func policy(t testing.TB, retention time.Duration, rules ...tenant.RetentionRule) Policy {
	t.Helper()
	p, err := New(tenant.Limits{Retention: model.Duration(retention), RetentionRules: rules})
	require.NoError(t, err)
	return p
}

func rule(selector string, keep time.Duration) tenant.RetentionRule {
	return tenant.RetentionRule{Selector: selector, Retention: model.Duration(keep)}
}

func TestABlockIsKeptAsLongAsAnySeriesOfItMay(t *testing.T) {
	now := time.UnixMilli(0).Add(100 * day)
	end := func(age time.Duration) int64 { return now.Add(-age).UnixMilli() }
	for _, c := range []struct {
		name    string
		policy  Policy
		age     time.Duration
		expired bool
	}{
		{"without rules", policy(t, 30*day), 30 * day, true},
		{"not yet", policy(t, 30*day), 30*day - time.Millisecond, false},
		{"for ever", policy(t, 0), 90 * day, false},
		{"a shorter rule", policy(t, 30*day, rule("a", day)), 29 * day, false},
		{"a longer rule", policy(t, 30*day, rule("a", 60*day)), 59 * day, false},
		{"a longer rule, at last", policy(t, 30*day, rule("a", 60*day)), 60 * day, true},
		{"a rule for ever", policy(t, 30*day, rule("a", 0)), 90 * day, false},
	} {
		require.Equal(t, c.expired, c.policy.Expired(end(c.age), now), c.name)
	}
}

func TestSamplesExpireByTheFirstRuleOfTheirSeries(t *testing.T) {
	now := time.UnixMilli(0).Add(100 * day)
	before := func(age time.Duration) tombstones.Intervals {
		return tombstones.Intervals{{Mint: math.MinInt64, Maxt: now.Add(-age).UnixMilli() - 1}}
	}
	filter := policy(t, 30*day, rule(`{env="dev",team="a"}`, 60*day), rule(`{env="dev"}`, 2*day)).Filter(0, now)
	require.Nil(t, filter.Hidden(labels.FromStrings("env", "dev", "team", "a")), "they are kept for as long as the block")
	require.Equal(t, before(2*day), filter.Hidden(labels.FromStrings("env", "dev")))
	require.Equal(t, before(30*day), filter.Hidden(labels.FromStrings("env", "prod")))
}

func TestNothingIsHiddenOfABlockThatIsYoungOrExpiresAsAWhole(t *testing.T) {
	now := time.UnixMilli(0).Add(100 * day)
	require.Nil(t, policy(t, 30*day).Filter(0, now))
	p := policy(t, 30*day, rule("a", 2*day))
	require.Nil(t, p.Filter(now.Add(-2*day).UnixMilli(), now))
	require.NotNil(t, p.Filter(now.Add(-2*day).UnixMilli()-1, now))
	require.Empty(t, p.Gone(now.Add(-2*day).UnixMilli()+1, now))
	require.Len(t, p.Gone(now.Add(-2*day).UnixMilli(), now), 1)
}

func TestTheKeyOfAClassStaysWithItsSelectors(t *testing.T) {
	now := time.UnixMilli(0).Add(100 * day)
	keys := func(rules ...tenant.RetentionRule) []string { return policy(t, 0, rules...).Gone(0, now) }
	a := keys(rule("a", 2*day), rule("b", 3*day))
	require.Equal(t, a, keys(rule("a", 5*day), rule("b", 9*day)), "whatever their retention")
	require.Equal(t, a[:1], keys(rule("a", 2*day)))
	require.NotEqual(t, a[1:], keys(rule("b", 3*day)), "series of a are among those of b now")
}
