@hypervisor
Feature: Machines on the hypervisor
  P1, P2, P5: masters, workers and data nodes are redundant. P8: the cluster's network is isolated. P12: what is configured survives
  a reboot. P13: the design scales out. All of them begin with machines that are what the environment declares.

  Background:
    Given all declared machines

  Rule: Redundancy takes machines of their own

    @acceptance @P1 @P2 @P5
    Scenario: Every node is a running machine
      Then each of them runs on the hypervisor under its declared id and name

    @acceptance @P13
    Scenario: Machines are given what was declared
      Then each of them is given its declared cores, weight, memory and disk

    @acceptance @P13
    Scenario: The environment's tag marks its machines and nothing else
      Then each of them carries the environment's tag
      And nothing that the environment does not declare carries it

  Rule: Machines come back by themselves

    @acceptance @P12
    Scenario: Machines start when the hypervisor boots
      Then each of them starts with the hypervisor

  Rule: Networks belong to those who are declared in them

    @acceptance @P8
    Scenario: Machines have their declared addresses and no others
      Then each of them has exactly its declared addresses, on the bridges of their networks

    @acceptance @P8
    Scenario: No stranger has a leg in these networks
      Then only declared machines have a card in the networks of these machines

    @acceptance @P8
    Scenario: Machines of other networks are out of reach
      When each of them calls the machines that are in none of its networks
      Then none of those answers
