"""Iterative stratification: rare labels are spread first, then the number of cases is evened out.

After Sechidis, Tsoumakas, Vlahavas (2011), "On the stratification of multi-label data", with patients in
place of single examples, and fold sizes that differ by one case at most where patients allow it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Labels = Mapping[str, Sequence[frozenset[int]]]


class _Folds:
    """What every fold may still take, in cases and in cases per label."""

    def __init__(self, patients: Labels, num_folds: int) -> None:
        num_cases = sum(len(cases) for cases in patients.values())
        smallest, larger = divmod(num_cases, num_folds)
        self.room = [smallest + (fold < larger) for fold in range(num_folds)]
        self.totals = _count_labels(patients.values())
        share = {label: total / num_folds for label, total in self.totals.items()}
        self.wanted = [dict(share) for _ in range(num_folds)]
        self.empty = set(range(num_folds))

    def add(self, cases: Sequence[frozenset[int]], fold: int) -> None:
        self.room[fold] -= len(cases)
        self.empty.discard(fold)
        for label, count in _count_labels([cases]).items():
            self.wanted[fold][label] -= count

    def best_for(self, cases: Sequence[frozenset[int]], label: int | None, *, num_waiting: int) -> int:
        """The fold with room that lacks `label` most; then all labels of the patient, then cases."""
        folds = list(range(len(self.room)))
        if num_waiting <= len(self.empty):
            folds = sorted(self.empty)  # no fold may stay without a patient
        most = max(self.room[fold] for fold in folds)
        fitting = [fold for fold in folds if self.room[fold] >= min(len(cases), most)]
        return max(fitting, key=lambda fold: (*self._lack(cases, label, fold), self.room[fold], -fold))

    def _lack(self, cases: Sequence[frozenset[int]], label: int | None, fold: int) -> tuple[float, float]:
        """Cases with `label` still wanted, and shares of all labels of the patient still wanted."""
        wanted = self.wanted[fold]
        others = sum(wanted[one] / self.totals[one] for one in sorted(frozenset().union(*cases)))
        # Rounded: the last digit of a sum of fractions must not decide between equally short folds.
        return (0.0 if label is None else round(wanted[label], 6)), round(others, 6)


def assign_patients(
    patients: Labels, num_folds: int, *, seed: int, fixed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the fold of every patient.

    Args:
        patients: Patient -> label ids of each case.
        num_folds: Not more than there are patients, unless some are fixed.
        seed: Decides the order among equal patients.
        fixed: Patients whose fold is given.
    """
    result = {patient: fold for patient, fold in (fixed or {}).items() if patient in patients}
    folds = _Folds(patients, num_folds)
    for patient, fold in result.items():
        folds.add(patients[patient], fold)
    # Large patients first, while there is room; equal ones in an order that names and seed decide.
    waiting = sorted(
        (patient for patient in patients if patient not in result),
        key=lambda patient: (-len(patients[patient]), _draw(patient, seed)),
    )
    counts = _count_labels(patients[patient] for patient in waiting)
    while waiting:
        label = min(counts, key=lambda one: (counts[one], one)) if counts else None
        patient = next(p for p in waiting if label is None or any(label in case for case in patients[p]))
        result[patient] = folds.best_for(patients[patient], label, num_waiting=len(waiting))
        folds.add(patients[patient], result[patient])
        waiting.remove(patient)
        counts -= _count_labels([patients[patient]])
    return result


def _count_labels(patients: Iterable[Sequence[frozenset[int]]]) -> Counter[int]:
    return Counter(label for cases in patients for case in cases for label in case)


def _draw(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()
