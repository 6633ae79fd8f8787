package tenant

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

const (
	// minRetention is the least that samples are kept: less than the compactor needs to
	// get them together in blocks of a day is not worth writing blocks for.
	minRetention = 24 * time.Hour
	// maxRetentionRules bounds the rules that each series that is read is compared with.
	maxRetentionRules = 20
)

// RetentionRule says how long the samples of some series are kept.
type RetentionRule struct {
	// Selector selects the series, in PromQL: {namespace="dev"}.
	Selector string `yaml:"selector" json:"selector"`
	// Retention is how long their samples are kept; 0 keeps them for ever.
	Retention model.Duration `yaml:"retention" json:"retention"`
}

// UnmarshalYAML implements yaml.Unmarshaler. It knows no other keys.
func (r *RetentionRule) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind != yaml.MappingNode {
		return errors.New("a rule is a mapping of selector and retention")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := node.Content[i].Value
		if key != "selector" && key != "retention" {
			return fmt.Errorf("unknown key %s; known here: retention, selector", key)
		}
		if seen[key] {
			return fmt.Errorf("the key %s stands twice", key)
		}
		seen[key] = true
	}
	if !seen["retention"] {
		return errors.New("a rule without retention")
	}
	type plain RetentionRule
	return node.Decode((*plain)(r))
}

// Matchers returns what the selector consists of.
func (r RetentionRule) Matchers() ([]*labels.Matcher, error) {
	matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(r.Selector)
	if err != nil {
		return nil, fmt.Errorf("selector %q: %w", r.Selector, err)
	}
	if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches("") }) {
		return nil, fmt.Errorf("selector %q: it matches series without any of its labels; name a label that has to be there", r.Selector)
	}
	return matchers, nil
}

// validateRetention reports all faults of the limits on what is kept.
func (l Limits) validateRetention() error {
	var errs []error
	if d := time.Duration(l.Retention); d != 0 && d < minRetention {
		errs = append(errs, fmt.Errorf("retention: %s is below 24h", l.Retention))
	}
	if l.MaxBucketBytes < 0 {
		errs = append(errs, fmt.Errorf("max_bucket_bytes: %d is below 0", l.MaxBucketBytes))
	}
	if len(l.RetentionRules) > maxRetentionRules {
		errs = append(errs, fmt.Errorf("retention_rules: %d rules are more than %d", len(l.RetentionRules), maxRetentionRules))
	}
	for i, rule := range l.RetentionRules {
		if _, err := rule.Matchers(); err != nil {
			errs = append(errs, fmt.Errorf("retention_rules: rule %d: %w", i+1, err))
		}
		if d := time.Duration(rule.Retention); d != 0 && d < minRetention {
			errs = append(errs, fmt.Errorf("retention_rules: rule %d: retention %s is below 24h", i+1, rule.Retention))
		}
	}
	return errors.Join(errs...)
}
