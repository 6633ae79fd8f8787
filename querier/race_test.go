//go:build race

package querier

const raceDetector = true
