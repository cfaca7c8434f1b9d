@nodes
Feature: Kubernetes nodes
  P12: what is configured survives a reboot, from swap to held versions. P13: the design scales out, with nodes that
  are all alike. Here: what is in force now, and what is written down for the next boot.

  Background:
    Given the machines of the Kubernetes nodes

  Rule: Nodes are what the document describes

    @acceptance @P12
    Scenario: Nodes run Debian 12
      Then each of them runs Debian 12

    @acceptance @P13
    Scenario: Guests see their declared memory
      Then each of them sees its declared memory

    @acceptance @P13
    Scenario: Guests see their declared cores
      Then each of them sees its declared cores

    @acceptance @P13
    Scenario: Guests see their declared disk
      Then each of them sees its declared disk

  Rule: What the kubelet and Pods need of the kernel is there, and stays

    @acceptance @P12
    Scenario: No swap
      Then none of them has swap, now or at the next boot

    @acceptance @P12
    Scenario: Kernel modules
      Then each of them has the modules of container networking, now and at the next boot

    @acceptance @P12
    Scenario: Kernel settings
      Then each of them has the settings of container networking, now and at the next boot

  Rule: The container runtime and the kubelet fit together, and stay

    @acceptance @P12
    Scenario: One cgroup driver
      Then containerd and the kubelet on each of them use the systemd cgroup driver

    @acceptance @P12
    Scenario: Services start at boot
      Then containerd and the kubelet run on each of them, and start at boot
      And the kubelet of each of them comes after its container runtime

    @acceptance @P12
    Scenario: One version of Kubernetes, held
      Then kubelet, kubeadm and kubectl on each of them are held
      And they and the API server are one release of the declared version
