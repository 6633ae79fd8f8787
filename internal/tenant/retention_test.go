package tenant

import (
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

func TestRetentionRulesAreStrict(t *testing.T) {
	for _, c := range []struct{ text, fault string }{
		{`[{selector: '{namespace="dev"}', retention: 30d}]`, ""},
		{`[{selector: up, retention: 0s}]`, ""},
		{`[{selector: up}]`, "without retention"},
		{`[{selector: up, retention: 30d, keep: 1d}]`, "unknown key keep"},
		{`[{selector: up, selector: down, retention: 30d}]`, "selector"},
		{`[up]`, "a mapping of selector and retention"},
		{`[{selector: up, retention: soon}]`, "soon"},
	} {
		var rules []RetentionRule
		err := yaml.Unmarshal([]byte(c.text), &rules)
		if c.fault == "" {
			require.NoError(t, err, c.text)
		} else {
			require.ErrorContains(t, err, c.fault, c.text)
		}
	}
}

func TestAllFaultsOfRetentionAreReported(t *testing.T) {
	l := DefaultLimits()
	l.MaxBucketBytes = -1
	day := model.Duration(24 * time.Hour)
	l.RetentionRules = []RetentionRule{
		{Selector: `{namespace="dev"}`, Retention: day},
		{Selector: `{namespace=`, Retention: day},
		{Selector: `{namespace=~"dev|"}`, Retention: day},
		{Selector: ``, Retention: day},
		{Selector: `up`, Retention: day / 2},
	}
	err := l.Validate()
	for _, want := range []string{
		"max_bucket_bytes: -1 is below 0", "rule 2: selector", "rule 3: selector", "name a label that has to be there",
		"rule 4: selector", "rule 5: retention 12h is below 24h",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "rule 1")
}
