@chaos @drill
Feature: Masters fail, one at a time
  P1: masters are redundant. Two members of etcd have no majority without each other, so the API is away until both are
  back. P3: an interruption of any node leaves the site available, for what runs keeps running. P4: the virtual address
  goes to another node, also from a master.

  Background:
    Given visitors and editors at work

  Rule: The site needs no master

    @P1 @P3
    Scenario: The master that is not the API's endpoint loses its power
      When the master that is not the API's endpoint loses its power
      Then visitors are served again within the time that the target's timers allow
      And the Kubernetes API is away until the master is back
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P1 @P3
    Scenario: The master that is the API's endpoint loses its power
      When the master that is the API's endpoint loses its power
      Then visitors are served again within the time that the target's timers allow
      And the Kubernetes API is away until the master is back
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P1 @P3 @P4
    Scenario: The master that is the API's endpoint and announces the virtual address loses its power
      When the master that is the API's endpoint and announces the virtual address loses its power
      Then visitors are served again within the time that the target's timers allow
      And the Kubernetes API is away until the master is back
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself
