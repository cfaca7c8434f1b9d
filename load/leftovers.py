"""What load leaves on a target: posts, files and comments, each known by its mark."""

from chaos.ledger import sweep as sweep_marked
from environments.model import Visit
from load.plan import Plan
from load.visit import COMMENT_MARK
from provisioning.database import quoted
from provisioning.session import Session

LEAVING = {Visit.COMMENT, Visit.EDIT, Visit.PUBLISH, Visit.UPLOAD}


def left_by(plan: Plan) -> bool:
    """Whether a run leaves anything. Pure."""
    return any(weight for visit, weight in plan.weights.items() if visit in LEAVING)


def sweep(session: Session) -> None:
    """Clear all of it, of earlier runs as well; raises ActionFailed."""
    sweep_marked(session)
    session.database.query(comments_cleared(session.database.site.database))


def comments_cleared(schema: str) -> str:
    """The statements that remove comments with the mark, and what WordPress counts of them. Pure."""
    return (
        f"DELETE FROM {schema}.wp_comments WHERE comment_content LIKE {quoted(COMMENT_MARK + '%')}; "
        f"DELETE FROM {schema}.wp_commentmeta WHERE comment_id NOT IN (SELECT comment_ID FROM {schema}.wp_comments); "
        f"UPDATE {schema}.wp_posts p SET comment_count = (SELECT COUNT(*) FROM {schema}.wp_comments c "
        "WHERE c.comment_post_ID = p.ID AND c.comment_approved = '1')"
    )
