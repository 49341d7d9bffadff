"""Prices in PostgreSQL: changes that operators make, and each list that a request was priced by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from billing_tasks.ledger.columns import SERVER_RUN
from billing_tasks.ledger.models import PriceChangeRecord, PriceListRecord
from billing_tasks.ledger.part import Part
from billing_tasks.ledger.rows import PriceChange
from billing_tasks.model.posting import ServerRun
from billing_tasks.pricing import Change, PriceList

_LOOK: Final[sa.Select[*tuple[Any, ...]]] = sa.select(
    sa.func.coalesce(sa.select(sa.func.max(PriceChangeRecord.id)).scalar_subquery(), 0).label("last"),
    sa.literal_column(SERVER_RUN),
)
# Of each name the latest that began some time ago, and all since: what is older decides nothing any more.
_CHANGES: Final = sa.text(
    "select kind, name, body, (extract(epoch from valid_from) * 1000)::bigint as from_ms,"
    " valid_from <= made_at as at_once"
    " from billing.price_changes as c where not exists (select from billing.price_changes as later"
    " where later.kind = c.kind and later.name = c.name and (later.valid_from, later.id) > (c.valid_from, c.id)"
    " and later.valid_from < now() - interval '1 day') order by valid_from, id"
)
_CHANGE: Final = sa.text(
    "select id, made from billing.change_price(cast(:kind as text), cast(:name as text), cast(:body as jsonb),"
    " cast(:valid_from as timestamptz), cast(:actor as text), cast(:comment as text))"
)
_STORE: Final = sa.text(
    "select cast(missing as text) as missing from billing.store_price_list("
    "cast(:version as bigint), cast(:parts as jsonb), cast(:contents as jsonb))"
)
_PARTS: Final = sa.text(
    "select named.key as name, content from billing.price_lists, jsonb_each_text(parts) as named"
    " join billing.price_parts on digest = named.value where version = :version"
)


@dataclass(frozen=True, slots=True)
class PriceLook:
    """A look whether prices have changed: the number of the last change, and which server says so."""

    last_change: int
    server: ServerRun


class Prices(Part):
    """See above. Nothing here is ever changed or removed."""

    def look_at_prices(self) -> PriceLook:
        """Cheap: two look-ups by index."""
        row = self._db.statement(_LOOK, seconds=self._db.read_seconds)[0]
        return PriceLook(int(row[0]), ServerRun(row.server_run, row.last_version))

    def price_changes(self) -> list[Change]:
        """Those that count or are to come, in the order in which they begin."""
        rows = self._db.statement(_CHANGES, seconds=self._db.read_seconds)
        return [Change(row.kind, row.name, row.body, row.from_ms, row.at_once) for row in rows]

    def price_history(self, *, kind: str | None = None, name: str | None = None) -> list[PriceChange]:
        """All that were ever made, the latest first."""
        statement = sa.select(*PriceChangeRecord.__table__.columns).order_by(PriceChangeRecord.id.desc())
        if kind is not None:
            statement = statement.where(PriceChangeRecord.kind == kind)
        if name is not None:
            statement = statement.where(PriceChangeRecord.name == name)
        return [PriceChange(**row._mapping) for row in self._db.statement(statement)]

    def change_price(
        self, kind: str, name: str, body: Any, *, actor: str, comment: str = "", valid_from: datetime | None = None
    ) -> tuple[int, bool]:
        """Its number, and whether it was made now: False if it is so already. `valid_from` None: at once.

        Raises LedgerRefusedData if that lies in the past.
        """
        row = self._db.statement(
            _CHANGE,
            {
                "kind": kind,
                "name": name,
                "body": None if body is None else msgspec.json.encode(body).decode(),
                "valid_from": valid_from,
                "actor": actor,
                "comment": comment,
            },
        )[0]
        return int(row.id), bool(row.made)

    def store_price_list(self, prices: PriceList) -> None:
        """Store a list under its version; again, nothing. Raises LedgerRefusedData if another one has it."""
        digests = prices.digests
        contents: dict[str, str] = {}
        for _ in range(2):
            row = self._db.statement(
                _STORE,
                {
                    "version": prices.version,
                    "parts": msgspec.json.encode(dict(digests)).decode(),
                    "contents": msgspec.json.encode(contents).decode(),
                },
                seconds=self._db.read_seconds,  # a request waits for it
            )[0]
            if row.missing is None:
                return
            missing = set(msgspec.json.decode(row.missing))
            parts = prices.parts
            contents = {digest: parts[name] for name, digest in digests.items() if digest in missing}

    def price_list_parts(self, version: int) -> dict[str, str]:
        """The parts of a stored list, by name; empty if there is none."""
        return {row.name: row.content for row in self._db.statement(_PARTS, {"version": version})}

    def price_lists(self) -> list[tuple[int, datetime, dict[str, str]]]:
        """Version, when it was stored, and the digests of its parts; the latest first."""
        statement = sa.select(PriceListRecord.version, PriceListRecord.stored_at, PriceListRecord.parts)
        rows = self._db.statement(statement.order_by(PriceListRecord.stored_at.desc()))
        return [(row.version, row.stored_at, row.parts) for row in rows]
