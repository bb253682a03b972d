"""`nnssl_doctor`: what is installed, visible and writable, what nnU-Net will find, what is wrong
and how to fix it.

Nothing is changed, and nothing but a temporary file is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnssl.doctor import folders, packages
from nnssl.doctor.finding import WRONG, Finding, note


@dataclass(frozen=True)
class Report:
    sections: dict[str, list[Finding]]

    @property
    def wrong(self) -> list[Finding]:
        every = (finding for findings in self.sections.values() for finding in findings)
        return [finding for finding in every if finding.state == WRONG]


def examine() -> Report:
    sections = {"Installed": packages.installed(), "Folders": folders.folders()}
    if any(finding.state == WRONG for finding in sections["Installed"]):
        sections["Machine, trainers, checkpoints"] = [
            note("not looked at before the packages are right")
        ]
        return Report(sections)
    from nnssl.doctor import finds, machine  # only now: they import torch and nnU-Net

    sections["Machine"] = machine.machine()
    sections["Trainers that nnU-Net finds"] = finds.trainers()
    sections["Checkpoints that a training starts from"] = finds.checkpoints()
    return Report(sections)


def describe(report: Report) -> str:
    lines = []
    for title, findings in report.sections.items():
        lines.append(f"\n{title}")
        for finding in findings:
            lines += _lines(finding)
    count = len(report.wrong)
    ends = {0: "Nothing is wrong.", 1: "1 thing is wrong; the line after > fixes it."}
    lines.append("\n" + ends.get(count, f"{count} things are wrong; the lines after > fix them."))
    return "\n".join(lines).strip()


def _lines(finding: Finding) -> list[str]:
    first, *more = finding.says.splitlines()
    if finding.remedy:
        more.append(f"> {finding.remedy}")
    return [f"  {finding.state:6s}{first}", *(f"        {line}" for line in more)]
