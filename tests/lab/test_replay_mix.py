"""Mixed answers in a replay: each charge of them is arithmetic that can be shown."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

from billing_tasks.admin import Admin
from billing_tasks.flows.audit import verify
from billing_tasks.lab.replay.options import Options
from billing_tasks.lab.replay.run import replay
from billing_tasks.lab.trace import generate
from billing_tasks.runtime import Runtime
from billing_tasks.settings import Settings

TRACE = generate(200, seed=7)
OPTIONS = Options(users=12, mix=True, fail_rate=0.05, abandon_rate=0.04, hold_ttl_seconds=1, seed=5)


def test_a_mixed_replay_is_explained_to_the_unit(settings: Settings) -> None:
    """Caches, reasoning, searches, images and audio at list prices: each charge is its own arithmetic."""
    listed = settings.model_copy(update={"catalogue": "list", "unknown_model": "refuse"})
    report = replay(TRACE, OPTIONS, settings=listed)
    assert report.ok, report.findings[:5]
    seen: Counter[str] = Counter()
    with closing(Runtime(listed)) as runtime:
        admin = Admin(runtime)
        charges = []
        for user_id in range(report.first_user_id, report.last_user_id + 1):
            charges += admin.entries.find(user_id=user_id, kinds=["consume"], limit=1000).rows
        assert len(charges) == report.consumed > 100
        for charge in charges:
            found = admin.explain(charge.entry_id)
            assert found.agrees, found
            seen.update(line.meter for line in found.lines)
        assert verify.check(holds=runtime.holds, ledger=runtime.ledger).ok
    meters = {"cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "web_searches", "input_image_tokens"}
    assert meters <= seen.keys()
