@chaos @drill
Feature: Machines outlive the hypervisor that they are on
  M1: several hypervisors, with machines that move when one fails. Where there is one, this cannot be shown.

  Background:
    Given visitors and editors at work

  Rule: Machines move to another hypervisor

    @M1
    Scenario: One of several hypervisors is lost
      When one of several hypervisors is lost
      Then visitors are served again within the time that the target's timers allow
      And the data are there again within the time that the target's timers allow
      And nothing is lost but what the database's last checkpoint did not hold yet
