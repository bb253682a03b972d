"""`nnssl_doctor`: what is installed, visible and writable, what nnU-Net will find, what is wrong
and how to fix it.

Nothing is changed, and nothing but a temporary file is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnssl.doctor import folders, packages
from nnssl.doctor.finding import Finding, note


@dataclass(frozen=True)
class Report:
    sections: dict[str, list[Finding]]

    @property
    def wrong(self) -> list[Finding]:
        every = (finding for findings in self.sections.values() for finding in findings)
        return [finding for finding in every if finding.is_wrong]


def examine() -> Report:
    sections = {"Installed": packages.installed(), "Folders": folders.folders()}
    if any(finding.is_wrong for finding in sections["Installed"]):
        unseen = [note("not checked until the package problems are fixed")]
        return Report({**sections, "Machine, trainers, checkpoints": unseen})
    return Report({**sections, **_by_packages()})


def _by_packages() -> dict[str, list[Finding]]:
    """The sections that need torch and nnU-Net, which are imported only now."""
    from nnssl.doctor import discovery, machine

    return {
        "Machine": machine.machine(),
        "Trainers that nnU-Net finds": discovery.trainers(),
        "Checkpoints that a training starts from": discovery.checkpoints(),
    }


def report_text(report: Report) -> str:
    lines = []
    for title, findings in report.sections.items():
        lines.append(f"\n{title}")
        for finding in findings:
            lines += _finding_lines(finding)
    lines.append("\n" + _conclusion(len(report.wrong)))
    return "\n".join(lines).strip()


def _conclusion(wrong: int) -> str:
    ends = {0: "Nothing is wrong.", 1: "1 problem found; the command after > fixes it."}
    return ends.get(wrong, f"{wrong} problems found; the commands after > fix them.")


def _finding_lines(finding: Finding) -> list[str]:
    first, *more = finding.says.splitlines()
    if finding.remedy:
        more.append(f"> {finding.remedy}")
    return [f"  {finding.state:6s}{first}", *(f"        {line}" for line in more)]
