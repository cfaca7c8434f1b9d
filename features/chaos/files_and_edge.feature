@chaos @drill
Feature: Files wait for their server, and the public for the tunnel
  P7: files persist on NFS, which is one server: what is written while it is away waits and is not lost. P9: the site is
  public through one connector, without which the inside goes on. P12: what is configured survives a cold start.

  Background:
    Given visitors and editors at work

  Rule: A file server that comes back is waited for

    @P7
    Scenario: The file server loses its power for half a minute
      When the file server loses its power for half a minute
      Then the files are there again within the time that the target's timers allow
      And the data are there throughout
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P7
    Scenario: The file server's disk is full
      When the file server's disk is full
      Then visitors notice nothing
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

  Rule: The public comes by the tunnel alone

    @P9 @short
    Scenario: The connector of the tunnel loses its power
      When the connector of the tunnel loses its power
      Then the public host is there again within the time that the target's timers allow
      And the virtual address is there throughout
      And no acknowledged write is lost, doubled or changed
      And the target is whole again by itself

    @P9 @short
    Scenario: The connector of the tunnel is killed
      When the connector of the tunnel is killed
      Then the public host is there again within the time that the target's timers allow
      And the virtual address is there throughout
      And the target is whole again by itself

  Rule: All that was acknowledged outlives a cold start

    @P12
    Scenario: Everything loses its power at once
      When everything loses its power at once
      Then visitors are served again within the time that the target's timers allow
      And the data are there again within the time that the target's timers allow
      And nothing is lost but what the database's last checkpoint did not hold yet
      And the target is whole again by itself
