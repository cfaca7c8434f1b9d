"""The lab: a Proxmox in a box. The source document's target as system containers in a sealed network.

Only this package needs Linux and root. Everything outside it meets the lab through the Proxmox VE API
(`lab.api`), SSH to the guests, and `lab.provider`, by which a runner starts the lab and joins its network.
"""
