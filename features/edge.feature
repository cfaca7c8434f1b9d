@edge
Feature: The public side
  P9: the site is public and the machines' addresses are not. P10: only authorised e-mail addresses reach the
  administration. P12: what is configured survives a reboot.

  Rule: Everybody sees the site, and nobody sees where it is

    @acceptance @P9
    Scenario: The public host serves the site without a login
      Then the public host shows the site's front page to anybody

    @acceptance @P9
    Scenario: No public answer tells an address of the origin
      Then no address of the target shows in what the public side answers

    @acceptance @P9
    Scenario: The connector dials out and takes no calls
      Then the connector's machine listens on no port but that of its administration

    @acceptance @P9
    Scenario: No way leads round the tunnel
      Given a place outside where visitors are
      Then from there the public host answers, and no machine of the target and no virtual address does

    @acceptance @P9
    Scenario: The tunnel leads to the site and to nothing else
      Then the tunnel leads from the public host to the virtual address, and from every other host to nothing

    @acceptance @P12
    Scenario: The connector starts with its machine
      Given the machine of the connector
      Then the service of each of them runs, and starts at boot

    @disruptive @P9
    Scenario: The connector's machine is rebooted
      When the connector's machine is rebooted
      Then the public host shows the site's front page to anybody again

  Rule: The administration is behind a login that only authorised addresses pass

    @acceptance @P10
    Scenario: No spelling of the administration opens without a login
      Then every spelling of the administration leads to the login of Access

    @acceptance @P10
    Scenario: Only the declared addresses are admitted, and no longer than declared
      Then the policies before the administration admit the declared addresses and nobody else
      And a login lasts as long as declared

    @acceptance @P10
    Scenario: An authorised address gets in by PIN
      Given a mailbox that can be read
      When somebody asks for the administration with an authorised address and enters the PIN
      Then the site's own login opens for them

    @acceptance @P10
    Scenario: An unauthorised address gets no PIN and cannot tell
      Given a mailbox that can be read
      When two people ask for the administration, one of them with an unauthorised address
      Then only the authorised one gets a PIN
      And both are shown the same page

    @acceptance @P10
    Scenario: Wrong and used PINs are refused
      Given a mailbox that can be read
      When somebody asks for the administration with an authorised address
      Then a wrong PIN is refused
      And the right one is accepted once and refused again

    @acceptance @P10
    Scenario: An expired PIN is refused
      Given a mailbox that can be read
      Then a PIN that has expired is refused

    @acceptance @P10
    Scenario: Forged sessions are refused
      Given the session of somebody who is logged in
      Then the session opens the administration
      But altered, unsigned and self-signed copies of it do not
      And what Access has signed for another purpose does not

    @acceptance @P10
    Scenario: Programs show a token of their own
      Given the service token of this suite
      Then the service token opens the administration
      But with another secret it does not

  Rule: What is declared is the limit

    @acceptance @P10
    Scenario: Inside, the virtual address serves the administration without Access
      Given a virtual address that is open to everybody inside
      Then it shows the site's own login to whoever is inside

    @acceptance @P10
    Scenario: Where the environment closes the virtual address, it is closed
      Given a virtual address that is closed to all but declared clients
      Then the connector's machine reaches it and a machine that is no client does not

    @acceptance @P9 @P10
    Scenario: What stands before the site is Cloudflare's own
      Then the service and the connector are Cloudflare's own
