@storage
Feature: Files on NFS
  P7: files persist on NFS: no loss of information, the same content whichever replica answers. P8: the network of the
  cluster is isolated from other systems. P12: what is configured survives a reboot.

  Rule: The export is there for the cluster and for nobody else

    @acceptance @P7
    Scenario: A master sees the export
      When a master asks the file server what it exports
      Then the declared directory is exported to the cluster's network

    @acceptance @P8
    Scenario: The export is for the cluster's network only
      When a master asks the file server what it exports
      Then the declared directory is exported to no other network

    @acceptance @P8
    Scenario: Machines of the database's network do not reach the file server
      When a machine of the database's network asks the file server what it exports
      Then it gets no answer

    @acceptance @P12
    Scenario: The file server starts with its machine
      Given the machine of the file server
      Then the service of each of them runs, and starts at boot

  Rule: Whoever writes, everybody reads

    @acceptance @P7
    Scenario: A file that one worker writes is read on all
      Given the site's files mounted on every worker
      When one worker writes a file and closes it
      Then every worker reads what was written

    @acceptance @P7
    Scenario: Owners and modes are the same everywhere
      Given the site's files mounted on every worker
      When one worker writes files of different owners and modes
      Then every worker sees these owners and modes

  Rule: What was acknowledged is not lost, and what waits goes on

    @acceptance @P7
    Scenario: What is acknowledged is on the server's disk
      Given the site's files mounted on every worker
      When one worker writes a file and has it synced
      Then nothing of that file is left in the server's memory only

    @disruptive @P7
    Scenario: The file server loses its power while a worker writes
      Given the site's files mounted on every worker
      And a worker that writes and syncs one line after another
      When the file server loses its power and gets it back
      Then the worker goes on writing without an error
      And every line that was acknowledged is in the file, whose owner and mode are as before
