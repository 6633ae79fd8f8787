package write

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

var errExemplarName = errors.New("a label name of an exemplar is empty")

// ValidateLabels checks that ls, sorted by name, can be stored under limits. Its
// error is a *SeriesError that names the fault, the limit and its value.
func ValidateLabels(ls labels.Labels, limits tenant.Limits) error {
	invalid := func(reason Reason, format string, args ...any) error {
		return &SeriesError{Reason: reason, Detail: fmt.Sprintf(format, args...), Labels: Clip(ls.String())}
	}
	if ls.Get(model.MetricNameLabel) == "" {
		return invalid(ReasonMissingName, "the label __name__ is missing or empty")
	}
	if limits.MaxLabelsPerSeries > 0 && ls.Len() > limits.MaxLabelsPerSeries {
		return invalid(ReasonTooManyLabels, "%d labels exceed the limit max_labels_per_series of %d", ls.Len(), limits.MaxLabelsPerSeries)
	}
	var previous string
	first := true
	return ls.Validate(func(l labels.Label) error {
		switch {
		case l.Name == "":
			return invalid(ReasonInvalidLabel, "a label name is empty")
		case !first && l.Name == previous:
			return invalid(ReasonDuplicateLabel, "the label name %q stands twice", Clip(l.Name))
		case !utf8.ValidString(l.Name):
			return invalid(ReasonInvalidLabel, "the label name %q is not UTF-8", Clip(l.Name))
		case !utf8.ValidString(l.Value):
			return invalid(ReasonInvalidLabel, "the value %q of label %q is not UTF-8", Clip(l.Value), Clip(l.Name))
		case limits.MaxLabelNameBytes > 0 && len(l.Name) > limits.MaxLabelNameBytes:
			return invalid(ReasonLabelTooLong, "the label name %q has %d bytes and exceeds the limit max_label_name_bytes of %d", Clip(l.Name), len(l.Name), limits.MaxLabelNameBytes)
		case limits.MaxLabelValueBytes > 0 && len(l.Value) > limits.MaxLabelValueBytes:
			return invalid(ReasonLabelTooLong, "the value of label %q has %d bytes and exceeds the limit max_label_value_bytes of %d", Clip(l.Name), len(l.Value), limits.MaxLabelValueBytes)
		}
		previous, first = l.Name, false
		return nil
	})
}

// ValidateExemplarLabels checks that ls, sorted by name, can be the labels of an exemplar.
func ValidateExemplarLabels(ls labels.Labels) error {
	if name, twice := ls.HasDuplicateLabelNames(); twice {
		return fmt.Errorf("the label name %q of an exemplar stands twice", Clip(name))
	}
	return ls.Validate(func(l labels.Label) error {
		switch {
		case l.Name == "":
			return errExemplarName
		case !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value):
			return fmt.Errorf("the label %q of an exemplar is not UTF-8", Clip(l.Name))
		}
		return nil
	})
}

// Clip shortens s for a message: senders log messages verbatim.
func Clip(s string) string {
	const limit = 256
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
