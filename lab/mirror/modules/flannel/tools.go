//go:build tools

// Package flannel names what is built, so that go mod keeps it.
package flannel

import (
	_ "github.com/flannel-io/flannel"
)
