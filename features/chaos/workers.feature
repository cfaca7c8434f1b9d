@chaos @drill
Feature: Workers are redundant
  P2: when a worker fails, the others take over its work. P3: an interruption of any node leaves the site available.
  P4: one virtual address is announced by one node at a time, and by another when that fails. What may be felt meanwhile
  follows from the cluster's own timers.

  Background:
    Given visitors and editors at work

  Rule: Others carry the load of a worker that is gone

    @P2 @P3
    Scenario: A worker that serves visitors loses its power
      When a worker that serves visitors loses its power
      Then visitors are served again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P2 @P3
    Scenario: Two of the workers lose their power
      When two of the workers lose their power
      Then visitors are served again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: The virtual address outlives the node that announces it

    @P3 @P4
    Scenario: The announcer of the virtual address loses its power
      When the node that announces the virtual address loses its power
      Then visitors are served again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P3 @P4
    Scenario: The announcer of the virtual address loses its network
      When the node that announces the virtual address loses its network
      Then visitors are served again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: What runs goes on without those who started it

    @P3 @short
    Scenario: A worker's kubelet stops
      When a worker's kubelet stops
      Then visitors notice nothing
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P3 @short
    Scenario: A worker's container runtime stops
      When a worker's container runtime stops
      Then visitors notice nothing
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: Replicas come and go without anybody's noticing

    @P3 @short
    Scenario: A replica is deleted
      When a replica is deleted
      Then visitors notice nothing
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P3 @short
    Scenario: The replicas are restarted one after another
      When the replicas are restarted one after another
      Then visitors notice nothing
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: A full disk of one worker is one worker's

    @P3
    Scenario: A worker's disk is full
      When a worker's disk is full
      Then visitors are served again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself
