@cluster
Feature: The Kubernetes cluster
  P1: masters are redundant. P2: workers are redundant, so any of them can do another's work. P3: the loss of any node
  leaves the site available. P8: nobody else joins. P13: the design scales out. What can be seen while nothing fails:
  both sorts are whole, nothing that all need is on one machine, and Pods on different workers reach each other.

  Rule: There are two masters, and both keep the cluster's memory

    @acceptance @P1
    Scenario: Every control plane is Ready
      Given the machines of the control planes
      Then each of them is a Ready node

    @acceptance @P1
    Scenario: Every control plane holds a healthy etcd member
      Given the machines of the control planes
      When etcd is asked for its members
      Then they are these machines, all healthy and with one leader

  Rule: Any worker can do another's work

    @acceptance @P2
    Scenario: Every worker is Ready and labelled as one
      Given the machines of the workers
      Then each of them is a Ready node
      And each of them carries the worker's role label
      And each of them takes new Pods

    @acceptance @P2
    Scenario: Every system workload is whole
      Then no workload of the system is short of Pods

    @acceptance @P2
    Scenario: Pods on all workers reach each other
      Given a web server Pod on every worker
      When every Pod calls every Pod
      Then every call is answered by the Pod that was called

    @acceptance @P2
    Scenario: Pods on all workers resolve names of the cluster
      Given a web server Pod on every worker
      When every Pod resolves the name of the Kubernetes API
      Then every answer is the address of that Service

    @acceptance @P2
    Scenario: Pods on all workers reach a Service
      Given a Service with web servers on all workers
      When every Pod calls the Service at its address inside the cluster
      Then every call is answered by one of the Pods behind it

  Rule: What every Pod needs is not on one machine alone

    @acceptance @P3
    Scenario: The cluster's names outlive any one machine
      Then Ready Pods on several machines answer for the cluster's names

  Rule: The cluster grows when its owner wants it, and at nobody else's wish

    @acceptance @P8
    Scenario: What nodes join by comes to an end
      Then every token that nodes join by expires within a day
      And no certificates for further masters outlive their token

    @acceptance @P13
    Scenario: Charts can be installed from the declared repositories
      Then Helm on the first master knows the declared repositories and no others

    @disruptive @P13
    Scenario: One worker more
      When one worker more is built than declared
      Then it becomes a Ready node that takes new Pods
