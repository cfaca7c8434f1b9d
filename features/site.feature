@site
Feature: The site
  P3: the site stays available when a node is interrupted. P4: one virtual address shares its traffic out. P7: files
  persist on NFS, with the same content whichever replica answers. P11: the database user is bounded, so its password
  is nobody's to read. P13: the design scales out.

  Rule: Replicas stand on different workers, and all of them are the same site

    @acceptance @P3
    Scenario: Every replica is Ready, each on a worker of its own
      Then as many replicas as declared are Ready on different workers

    @acceptance @P4 @P7
    Scenario: A post that is published through the virtual address is there for everybody
      Given an editor who is logged in at the virtual address
      When the editor publishes a post
      Then the front page shows it at the virtual address and on every replica

    @acceptance @P7
    Scenario: An image that is uploaded through the virtual address is on every replica
      Given an editor who is logged in at the virtual address
      When the editor uploads an image
      Then every replica serves it byte for byte

    @acceptance @P3
    Scenario: A login on one replica is valid on all
      Given an editor who is logged in on one replica
      Then the editor is logged in on every replica

    @acceptance @P3
    Scenario: A name that nobody answers holds no page up for long
      Then every replica gives such a name up before a visitor gives up the page

  Rule: Content outlives the replicas

    @acceptance @P7
    Scenario: The site's files are on the file server
      Then the site's claim is bound to the file server's export
      And every replica has its files there

    @acceptance @P7
    Scenario: Replicas may write, and wait for their files without end
      Then every replica writes there as the site's own user
      And the claim's volume is mounted so that a server that is away is waited for

    @disruptive @P3 @P7
    Scenario: All replicas are deleted
      Given an editor who is logged in at the virtual address
      And a post and an image of the editor's
      When all replicas are deleted and others have taken their place
      Then the front page shows the post and every replica serves the image

    @disruptive @P13
    Scenario: One replica more
      When one replica more is asked for than declared
      Then it becomes Ready and answers with the same site
      And the replicas are as declared again afterwards

  Rule: Passwords stay where they belong

    @acceptance @P11
    Scenario: No password in what people can read
      Then no password of the site is in a Pod's specification, a manifest or a log
