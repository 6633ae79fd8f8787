package importer

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

func TestReplicasWithChunksThatOverlapAreImported(t *testing.T) {
	b := newBed(t)
	b.cfg.ReplicaLabels = []string{"replica"}
	whole := blocktest.Floats("a", 0, 2*hour, step)
	n := len(whole.Samples)
	first, second := whole, whole
	first.Samples, second.Samples = whole.Samples[:3*n/4], whole.Samples[n/4:]
	dir := blocktest.WriteOverlapping(t, b.source, 0, 2*hour, []blocktest.Series{first}, []blocktest.Series{second})
	edit(t, dir, `{"thanos": {"labels": {"replica": "0"}}}`)
	other := write(t, b.source, 0, 2*hour, `{"thanos": {"labels": {"replica": "1"}}}`, blocktest.Floats("b", 0, 2*hour, step))
	_, out := b.run(t)
	want := blocktest.Samples(t, blocktest.Write(t, t.TempDir(), 0, 2*hour, whole), other)
	require.Equal(t, want, b.samples(t, tenant.Default), out)
}
