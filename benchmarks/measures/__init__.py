"""What is measured. Each takes a Session, makes its own environment and writes into the session's book.

inline.py   reserve and consume, call by call          drain.py    a backlog booked, and the processors' time
trips.py    round trips                                cycle.py    whole requests with live workers
light.py    from consume to posted at light load       hot.py      one user, one channel
memory.py   bytes per hold and per event               growth.py   many users, much history, a new month
server.py   Redis's own time per script
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measures import cycle, drain, growth, hot, inline, light, memory, server, trips
from benchmarks.session import Session

Measure = Callable[[Session], None]

#: By the names that `--only` takes, in the order in which they run.
MEASURES: dict[str, Measure] = {
    "reserve": inline.measure_reserve,
    "consume": inline.measure_consume,
    "server": server.measure,
    "trips": trips.measure,
    "memory": memory.measure,
    "drain": drain.measure,
    "cycle": cycle.measure,
    "light": light.measure,
    "hot": hot.measure,
    "growth": growth.measure,
}
