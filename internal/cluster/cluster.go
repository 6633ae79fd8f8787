// Package cluster knows who belongs to a cluster and who places data: the
// registry. Each instance owns one record in it and alone moves it through its
// states; records spread by gossip and the one with the highest epoch wins, so that
// all nodes come to the same registry in whatever order they hear of changes.
//
// The registry decides placement; whether an instance answers at this moment does
// not. An instance that crashes keeps its slots, and only a join, a drain or a
// forgotten member moves any.
package cluster
