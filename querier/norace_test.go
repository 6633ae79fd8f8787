//go:build !race

package querier

const raceDetector = false
