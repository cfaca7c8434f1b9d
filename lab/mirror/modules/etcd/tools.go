//go:build tools

// Package etcd names what is built, so that go mod keeps it.
package etcd

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
