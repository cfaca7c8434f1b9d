"""The software of the nodes: operations by pyinfra over SSH, in a process of their own."""
