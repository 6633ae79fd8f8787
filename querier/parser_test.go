package querier

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Without a bound each of these keeps a core busy for hours, or takes gigabytes.
func TestExpressionsThatAreNestedTooDeeplyAreRefused(t *testing.T) {
	const depth = 500_000
	r := secrets(t)
	for name, query := range map[string]string{
		"parentheses": strings.Repeat("(", depth) + "1" + strings.Repeat(")", depth),
		"signs":       strings.Repeat("-", depth) + "1",
		"sums":        strings.Repeat("1+", depth) + "1",
		"powers":      strings.Repeat("2^", depth) + "1",
		"subqueries":  "up" + strings.Repeat("[1m:]", depth),
		"no closing":  strings.Repeat("sum(", depth),
	} {
		for _, path := range []string{"/api/v1/query", "/api/v1/parse_query", "/api/v1/format_query"} {
			got := r.post(alice, path, url.Values{"query": {query}})
			require.Equal(t, http.StatusBadRequest, got.Code, "%s %s", name, path)
			require.Contains(t, got.Body, "more than 1000 operators and brackets", "%s %s", name, path)
		}
		got := r.post(alice, "/api/v1/series", url.Values{"match[]": {query}})
		require.Equal(t, http.StatusBadRequest, got.Code, "%s in match[]", name)
	}
}

func TestLongExpressionsThatAreFlatAreServed(t *testing.T) {
	r := secrets(t)
	pods := `secret_total{pod!~"` + strings.Repeat("(a-b|c+d)|", 5000) + `z"}` // one string, whatever is in it
	for name, query := range map[string]string{
		"a long pattern":    pods,
		"as many as may be": strings.Repeat("1+", maxNesting) + "1",
	} {
		for _, path := range []string{"/api/v1/query", "/api/v1/parse_query", "/api/v1/format_query"} {
			got := r.post(alice, path, url.Values{"query": {query}})
			require.Equal(t, http.StatusOK, got.Code, "%s %s: %s", name, path, got.Body)
		}
	}
}
