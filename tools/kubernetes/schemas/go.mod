module github.com/hundredfold/hundredfold/tools/kubernetes/schemas

go 1.26.8

// Only files of theirs are read, so they are not compiled and need nothing.
require (
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/kubectl-validate v0.0.4
)
