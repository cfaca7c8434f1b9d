@recovery
Feature: Coming back
  P12: what is configured survives a reboot. A worker that is rebooted, and a whole target that loses its power, come
  back as they were without anybody's help, within a budget computed from the cluster's own timers.

  Background:
    Given a healthy cluster
    And the machines of the Kubernetes nodes

  Rule: A reboot loses nothing that was configured

    @disruptive @P12
    Scenario: A worker is rebooted
      Given the machine of one worker
      When it is rebooted
      Then each of them takes part in the cluster again within the budget
      And the kubelet of each of them was started once
      And each of them still has all that was configured

  Rule: A power cut loses nothing that was configured

    @disruptive @P12
    Scenario: All machines lose their power at once
      When the power of every machine of the target is cut and returns
      Then each of them takes part in the cluster again within the budget
      And every member of the database takes part again
      And the site answers at its virtual address and at the public host
      And each of them still has all that was configured
