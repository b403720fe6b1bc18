"""The auditor on facts and arrays: each thing that two sides can share, found where it is and not where it is not."""

from dataclasses import replace

import numpy as np
import pytest

from histoflow._errors import SplitError
from histoflow.stats import Contents, SectionFacts, audit_contents, audit_ids
from histoflow.stats.audit import n_equal, n_overlapping, refuse

LATTICE = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 200.0


def ids(by, *facts):
    return audit_ids("F", by, facts[:-1], facts[-1:], facts)


def contents(section, seed, slide_id="", patient=None, xy_um=LATTICE, patch_um=224.0):
    rows = np.random.default_rng(seed).integers(0, 2**60, (2, len(xy_um)), dtype=np.uint64)
    named = {"embeddings scatter": rows[0], "counts": rows[1]}
    return Contents(SectionFacts(section, patient), slide_id, np.asarray(xy_um), patch_um, named)


def moved(shift_um):
    return LATTICE + np.array([shift_um, 0.0])


def kinds(findings):
    return [(finding.kind, finding.refuses) for finding in findings]


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("P1", "p1 ", True),
        ("P1", "P-1", True),
        ("P1", "Patient 1", True),
        ("P1", "p_01", True),
        ("Müller", "müller", True),
        ("P1", "P11", False),
        ("P10", "P1", False),
        ("A1", "B1", False),
        ("pt", "p", False),
        ("P1-1", "P11", False),
        ("P1-11", "P11-1", False),
        ("P1-1", "p1_01", True),
        ("P1/1 ", "1.1", True),
    ],
)
def test_two_spellings_of_a_patient_are_one(first, second, one):
    facts = SectionFacts("A", first), SectionFacts("B", second)
    assert kinds(ids("patient", *facts)) == ([("spelling", True)] if one else [])
    assert kinds(ids("section", *facts)) == ([("spelling", False)] if one else [])
    if one:
        assert "sections B and A have the patient ids" in ids("patient", *facts)[0].sentence


def test_two_spellings_of_a_block_are_refused_by_block_alone():
    facts = SectionFacts("A", "P", "C1"), SectionFacts("B", "P", "c-1")
    assert [kinds(ids(by, *facts)) for by in ("section", "block", "patient")] == [
        [("spelling", False)],
        [("spelling", True)],
        [("spelling", False)],
    ]


def test_serial_neighbours_are_told_and_refused_by_block():
    serial = [SectionFacts(f"C{i}", "C", "C", order=i) for i in (2, 3, 5)]
    assert kinds(ids("section", *serial[:2])) == [("serial", False)]
    assert kinds(ids("block", *serial[:2])) == [("serial", True)]
    assert not ids("block", *serial[1:])  # two apart


def test_serial_sections_under_a_block_each_are_refused_by_block():
    alone = [SectionFacts(f"C{i}", "C", f"block-{i}", order=i) for i in (2, 3)]
    (found,) = ids("block", *alone)
    assert (found.kind, found.refuses, found.sections) == ("serial_ids", True, ("C3", "C2"))
    assert "leave `order` empty" in found.sentence
    assert not ids("section", *alone)
    first_of_two_blocks = [replace(fact, order=1) for fact in alone]
    assert not ids("block", *first_of_two_blocks)
    others = [SectionFacts("C9", "C", "block-2", order=9)]
    assert not audit_ids("F", "block", alone[:1], alone[1:], [*alone, *others])  # a block of several sections is one


def test_equal_rows_are_the_same_pixels_and_the_same_spots():
    one, other = contents("A", 1, patient="P1"), contents("B", 2, patient="P2")
    assert not audit_contents("F", "patient", [one], [other])
    same = replace(contents("B", 1, patient="P2"), rows={"embeddings scatter": one.rows["embeddings scatter"][::-1]})
    (found,) = audit_contents("F", "patient", [one], [same])
    assert (found.kind, found.refuses) == ("same_pixels", True)
    assert found.sentence == (
        "sections B and A have 36 equal rows of embeddings scatter: the same pixels twice; they are said to be of "
        "patient 'P2' and 'P1'; give them one patient, or keep one of the two"
    )
    counts = replace(contents("B", 2), rows={"counts": one.rows["counts"]})
    (found,) = audit_contents("F", "section", [one], [counts])
    assert (found.kind, found.refuses) == ("same_counts", True)
    assert "leave out the shared spots" in found.sentence


def test_chance_and_empty_glass_are_no_finding():
    rows = np.arange(300, dtype=np.uint64)
    assert n_equal(rows, rows[:3] + 0) == 3
    assert n_equal(rows, np.array([0, 1, 900], dtype=np.uint64)) == 0
    assert n_equal(np.arange(1000, dtype=np.uint64), np.arange(995, 2000, dtype=np.uint64)) == 0  # under a hundredth
    glass = np.full(50, 7, dtype=np.uint64)
    assert n_equal(np.concatenate([rows, glass]), np.concatenate([rows + 1000, glass])) == 0


def test_patches_that_overlap_are_refused_at_every_level():
    one = contents("A", 1, "slide", "P1")
    for shift, n_spots in ((100.0, 36), (1000.0, 12), (1223.0, 6)):
        other = contents("B", 2, "slide", "P2", moved(shift))
        for by in ("section", "patient"):
            (found,) = audit_contents("F", by, [one], [other])
            assert (found.kind, found.refuses) == ("overlapping_pixels", True)
            assert f"the patches of {n_spots} spots held out" in found.sentence
    far = contents("B", 2, "slide", "P2", moved(1224.0))
    assert kinds(audit_contents("F", "patient", [one], [far])) == [("same_slide", False)]
    elsewhere = contents("B", 2, "another slide", "P2")
    assert not audit_contents("F", "patient", [one], [elsewhere])
    unknown = contents("A", 1), contents("B", 2)
    assert not audit_contents("F", "patient", unknown[:1], unknown[1:])


def test_patches_are_squares():
    train = np.zeros((1, 2))
    assert n_overlapping(np.array([[159.0, 159.0], [223.0, 0.0], [224.0, 0.0], [223.0, 223.0]]), train, 224.0) == 3
    assert n_overlapping(np.array([[0.5, 0.0], [5.0, 0.0]]), train, 0.0) == 1


def test_a_refusal_names_the_first_and_counts_the_rest():
    found = [replace(f, sentence=f"number {i}") for i in range(7) for f in ids("block", *spelled())]
    with pytest.raises(SplitError, match=r"the split leaks: number 0; .*; number 4; and 2 more$"):
        refuse(found)
    refuse(replace(f, refuses=False) for f in found)


def spelled():
    return SectionFacts("A", "P", "C1"), SectionFacts("B", "P", "c1")
