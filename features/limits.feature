@limits
Feature: Declared limits
  What the document's own topology cannot keep, stated as it truly behaves. P1: masters are redundant, but two etcd
  members are one too few. P5: the database is replicated, behind one SQL node. P6: neither Kubernetes nor the database
  needs the other. P7: files persist, on one file server. P9: the site is public, through one connector.

  Background:
    Given a site that answers at its virtual address

  Rule: Two masters are not one that may fail

    @disruptive @P1
    Scenario: Losing one of two masters stops the Kubernetes API and leaves the site up
      When the second master loses its power
      Then the Kubernetes API takes no writes
      And the site goes on answering

    @disruptive @P1
    Scenario: Losing the master that the API is named after takes the API away and leaves the site up
      When the master that the API is named after loses its power
      Then the Kubernetes API takes no writes
      And the site goes on answering within the takeover of its address

  Rule: One SQL node is all that the site has

    @disruptive @P5
    Scenario: Losing the SQL node takes the site down and loses nothing
      When the SQL node loses its power
      Then the site says that it has no database
      And it answers again by itself once the SQL node is back

  Rule: The management node is needed to start, not to go on

    @disruptive @P5
    Scenario: Losing the management node leaves the site up
      When the management node loses its power
      Then the site goes on answering

  Rule: One file server holds every replica's files

    @disruptive @P7
    Scenario: Losing the file server makes uploads wait and fails none
      Given an editor who is logged in at the virtual address
      When the file server loses its power while the editor uploads an image
      Then the upload ends well once the file server is back
      And every replica serves it byte for byte

  Rule: One connector is all that the public comes by

    @disruptive @P9
    Scenario: Losing the connector takes the public host away and leaves the inside
      When the connector loses its power
      Then the public host says that it has no connector
      And the site goes on answering
      And the public host answers again by itself once the connector is back
