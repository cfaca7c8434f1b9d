"""All lies, in the order in which they are told: those that the snapshot must take back come last."""

from tests.sabotage.layers import cluster, database, edge, hypervisor, load_balancer, nodes, site, storage, suite

LIES = tuple(
    sorted(
        (
            *hypervisor.LIES,
            *nodes.LIES,
            *cluster.LIES,
            *load_balancer.LIES,
            *database.LIES,
            *storage.LIES,
            *site.LIES,
            *edge.LIES,
            *suite.LIES,
        ),
        key=lambda lie: lie.rollback,
    )
)
