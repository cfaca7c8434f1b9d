@chaos @drill
Feature: The database tolerates failures
  P5: data nodes hold replicas of each other, so that either may fail. P6: the database lives outside Kubernetes, and
  neither's fall touches the other.

  Background:
    Given visitors and editors at work

  Rule: Either data node may fail

    @P5 @short
    Scenario: Each data node in turn is killed
      When each data node in turn is killed
      Then the data are there again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P5
    Scenario: Each data node in turn loses its power
      When each data node in turn loses its power
      Then the data are there again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P5
    Scenario: Each data node in turn hangs
      When each data node in turn hangs
      Then the data are there again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P5
    Scenario: The data nodes are cut off from each other
      When the data nodes are cut off from each other
      Then the data are there again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P5
    Scenario: A data node's disk is full
      When a data node's disk is full
      Then the data are there again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: The management node is missed only by a data node that fails

    @P5 @short
    Scenario: The management node loses its power
      When the management node loses its power while it is in use
      Then the data are there throughout
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P5
    Scenario: The management node and then a data node lose their power
      When the management node and then a data node lose their power
      Then the data are away until both are back
      And visitors are away until both are back
      And nothing is lost but what the database's last checkpoint did not hold yet
      And the target is whole again by itself

  Rule: One SQL node is all that the site has

    @P5 @short
    Scenario: The SQL node loses its power
      When the SQL node loses its power while it is in use
      Then the data are away until it is back
      And visitors are away until it is back
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: The cluster's fall does not touch the database

    @P6
    Scenario: The whole of Kubernetes loses its power
      When the whole of Kubernetes loses its power
      Then the data are there throughout
      And visitors are served again within the time that the target's timers allow
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P6
    Scenario: The whole of the database loses its power
      When the whole of the database loses its power
      Then the data are there again within the time that the target's timers allow
      And visitors are away until it is back
      And nothing is lost but what the database's last checkpoint did not hold yet
      And the target is whole again by itself
