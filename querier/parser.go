package querier

import (
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// maxNesting bounds the operators and opening brackets of one expression, and so how
// deep its tree can be. To check a tree takes time that grows with the square of its
// depth, to format it with the cube, and neither can be stopped; a tree of some
// hundred thousand levels keeps a core busy for hours. Expressions that people or
// their tools write have some hundred.
const maxNesting = 1000

// boundedParser is a parser of PromQL that refuses expressions that are nested too
// deeply to be worked with.
type boundedParser struct{ parser.Parser }

// newParser returns the parser of Prometheus without any feature flag.
func newParser() parser.Parser {
	return boundedParser{parser.NewParser(parser.Options{ExperimentalDurationExpr: true})}
}

// ParseExpr implements parser.Parser.
func (p boundedParser) ParseExpr(input string) (parser.Expr, error) {
	if err := checkNesting(input); err != nil {
		return nil, err
	}
	return p.Parser.ParseExpr(input)
}

// ParseMetricSelector implements parser.Parser.
func (p boundedParser) ParseMetricSelector(input string) ([]*labels.Matcher, error) {
	if err := checkNesting(input); err != nil {
		return nil, err
	}
	return p.Parser.ParseMetricSelector(input)
}

// ParseMetricSelectors implements parser.Parser.
func (p boundedParser) ParseMetricSelectors(inputs []string) ([][]*labels.Matcher, error) {
	for _, input := range inputs {
		if err := checkNesting(input); err != nil {
			return nil, err
		}
	}
	return p.Parser.ParseMetricSelectors(inputs)
}

// checkNesting counts with Prometheus's own lexer, so that strings and comments do
// not count. What the lexer does not understand is left to the parser to report.
func checkNesting(input string) error {
	if len(input) <= maxNesting {
		return nil
	}
	lexer := parser.Lex(input)
	found := 0
	for {
		var item parser.Item
		lexer.NextItem(&item)
		switch {
		case item.Typ == parser.EOF, item.Typ == parser.ERROR:
			return nil
		case item.Typ == parser.LEFT_PAREN, item.Typ == parser.LEFT_BRACKET, item.Typ.IsOperator():
			found++
		}
		if found > maxNesting {
			return fmt.Errorf("the expression has more than %d operators and brackets: split it, or use a regular expression instead of many alternatives", maxNesting)
		}
	}
}
