@database
Feature: The database
  P5: the database is replicated and tolerates the loss of a data node. P6: it lives outside of Kubernetes. P11: the
  site's user comes only from the cluster's network and sees only its own schema. P12: what is configured survives a
  reboot.

  Rule: All members take part, and the data nodes hold replicas of each other

    @acceptance @P5
    Scenario: Every member of the cluster is connected
      When the management node is asked for the members
      Then every declared member is connected

    @acceptance @P5
    Scenario: The data nodes are replicas of each other
      When the management node is asked for the members
      Then as many data nodes as there are replicas form each node group
      And all data nodes run with one generation of the configuration

    @acceptance @P5
    Scenario: A data node that falls silent is missed as soon as declared
      Then all data nodes watch each other at the declared interval

    @acceptance @P12
    Scenario: Every member starts with its machine
      Given the machines of the database
      Then the service of each of them runs, and starts at boot

    @acceptance @P6
    Scenario: The database's machines are no part of the Kubernetes cluster
      Given the machines of the database
      Then none of them is a node of the Kubernetes cluster

    @disruptive @P6
    Scenario: Load on Kubernetes is no load of the database
      When every processor of every worker is busy
      Then the database answers as fast as before

  Rule: Every table of the site is in the cluster, not on the one SQL node

    @acceptance @P5
    Scenario: The site's tables are replicated
      Then every table of the site is kept by the data nodes

    @acceptance @P5
    Scenario: A table that is made later is replicated too
      Given a table that the site makes without naming an engine
      Then that table is kept by the data nodes

  Rule: What is written survives

    @disruptive @P5
    Scenario: Each data node in turn is stopped
      Given a table that the site makes without naming an engine
      When a row is written to it, and each data node in turn is stopped meanwhile
      Then the row was read back with every one of them stopped

    @disruptive @P5
    Scenario: All machines of the database lose their power at once
      Given a row of the site that is older than the last global checkpoint
      And the machines of the database
      When all of these lose their power and get it back
      Then every member of the database takes part again
      And the row is still there

    @disruptive @P5
    Scenario: A backup taken while the database is at work restores into an empty cluster
      Given a row of the site that is older than the last global checkpoint
      When a backup is taken and restored into an empty cluster
      Then all tables of the site have the same rows and checksums there

  Rule: The site's user is bounded

    @acceptance @P11
    Scenario: The user may use its own schema and nothing else
      Then the site's user has exactly the grants on its own schema

    @acceptance @P11
    Scenario: The user is known from the cluster's network only
      Then the site's user is declared for the cluster's network and for nowhere else

    @acceptance @P11
    Scenario: The user is let in from the cluster's network
      When the site's user logs in from the cluster's network
      Then it is let in

    @acceptance @P11
    Scenario: The user is turned away from another network
      When the site's user logs in from the database's network
      Then it is turned away

    @acceptance @P11
    Scenario: Root is root on the machine only
      Then the database's root can log in from the SQL node itself only
