"""The Proxmox VE API as the lab speaks it: requests in, calls of `lab.hypervisor`, PVE-shaped answers out."""
