//go:build tools

// Package metallb names what is built, so that go mod keeps it.
package metallb

import (
	_ "go.universe.tf/metallb/controller"
	_ "go.universe.tf/metallb/speaker"
)
