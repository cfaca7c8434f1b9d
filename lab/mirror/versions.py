"""The versions of everything that the mirror builds, in one place."""

KUBERNETES = "1.30.4"  # the only release of the 1.30 line of which every Go module can be had
KUBERNETES_DATE = "2024-08-14T00:00:00Z"
PACKAGE_REVISION = "1.1"
STREAM = "v1.30"
ETCD = "3.5.12"
COREDNS = "1.11.1"
FLANNEL = "0.25.6"
FLANNEL_PLUGIN_TAG = "v1.5.1-flannel2"  # the tag that flannel's manifest asks for
CNI_PLUGINS = "0.9.1"  # the last release that ships flannel's plugin
METALLB = "0.13.12"
CRICTL = "1.30.0"
PAUSE = "3.9"
HELM = "3.15.4"
BUSYBOX_TAG = "1.36.1-1"
DEBIAN = "bookworm"
MYSQL_RELEASE = "sid"  # the release of Debian whose MySQL has NDB; which version that is, the archive says
