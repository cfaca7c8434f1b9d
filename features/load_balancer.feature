@load_balancer
Feature: Virtual addresses
  P4: no external load balancer is needed. A Service has one virtual address in the cluster's own network, one node
  answers for it, and traffic is shared out over the Pods behind it.

  Rule: A virtual address comes from the pool

    @acceptance @P4
    Scenario: A Service gets an address of the pool
      When a Service of type LoadBalancer is made
      Then it gets an address of the pool

    @acceptance @P4
    Scenario: Two Services get two addresses
      When two Services of type LoadBalancer are made
      Then each of them gets an address of the pool of its own

    @disruptive @P4
    Scenario: The end of the pool is an error and not a theft
      Given Services that hold all addresses of the pool
      When a Service of type LoadBalancer is made
      Then its events say that no address is left
      And the other Services keep their addresses

  Rule: One node answers for a virtual address

    @acceptance @P4
    Scenario: kube-proxy leaves ARP to the announcer
      Then kube-proxy is told strictARP

    @acceptance @P4
    Scenario: One node answers ARP
      Given a Service with web servers on all workers
      When the segment is asked by ARP who has its virtual address
      Then exactly one machine of the environment answers

  Rule: Traffic is shared out

    @acceptance @P4
    Scenario: Traffic reaches every replica
      Given a Service with web servers on all workers
      When visitors call its virtual address
      Then every replica answers some of them and no call fails
