//go:build tools

// Package helm names what is built, so that go mod keeps it.
package helm

import (
	_ "helm.sh/helm/v3/cmd/helm"
)
