//go:build tools

// Package crictl names what is built, so that go mod keeps it.
package crictl

import (
	_ "github.com/kubernetes-sigs/cri-tools/cmd/crictl"
)
