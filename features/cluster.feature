@cluster
Feature: The Kubernetes cluster
  P1: masters are redundant. P2: workers are redundant, so any of them can do another's work. What can be seen while
  nothing fails: both sorts are whole, and Pods on different workers reach each other.

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
